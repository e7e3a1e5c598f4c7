"""The `tpp` benchmark: sae-bench's targeted probe perturbation.

The latents that matter most to the probe of one class are set to zero: its probe should suffer, those of the other
classes should not. Activations and probes of the language model are computed once per data set and hook, and kept: see
evaluate/labelled/set_up.py. sae-bench writes probes as pickles; they are written as safetensors here.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import JsonValue

from compute.code_version import CodeVersion
from evaluate.benchmarks.benchmark import Benchmark, Better, EvaluatedSAE, Measurement, NotRun
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.jackknife import as_arrays, without_one_task
from evaluate.labelled.config import Labels, LabelsList
from evaluate.labelled.set_up import (
    Epochs,
    NumTexts,
    begin_as_sae_bench,
    datasets_identity,
    kept_dataset,
    language_model_later,
    prepare_datasets,
    why_missing,
)
from store.record import Record

if TYPE_CHECKING:
    from evaluate.sae_bench import StoredSAE

N_VALUES = (2, 5, 10, 20, 50, 100, 500)
"""sae-bench's default. An SAE with fewer latents has no results of the larger ones."""
KINDS: dict[str, Better] = {
    "total_metric": "higher",
    "intended_diff_only": "higher",
    "unintended_diff_only": "lower",
}
USEFUL_PROBE = 0.6
"""Accuracy of a probe below which its perturbation says little."""


class TppConfig(Record):
    """Settings of sae-bench's `tpp`, under its names."""

    datasets: LabelsList
    """Which labelled texts."""
    train_set_size: NumTexts
    """Texts to train a probe of one class against the others; half of them are of the class."""
    test_set_size: NumTexts
    """Texts to test it, with and without latents."""
    context_length: int
    """Tokens of a text that are read; what is behind is cut off."""
    probe_epochs: Epochs = 20
    """Passes over the texts to train a probe."""
    early_stopping_patience: Epochs = 20
    """Epochs without gain after which a probe is trained no further."""
    sae_batch_size: int = 125
    """Texts that the SAE encodes at once."""
    llm_batch_size: int = 32
    """Texts that the language model reads at once."""
    random_seed: int = 42


SetUp = dict[tuple[str, str], Path]
"""By hook and data set: sae-bench's artifacts folder."""


def not_run(config: TppConfig, context: BenchmarkContext) -> NotRun | None:
    """Whether data sets are missing."""
    del context
    return why_missing(config.datasets, "tpp")


def depends_on(config: TppConfig) -> dict[str, JsonValue]:
    """Digests of the data sets."""
    return datasets_identity(config.datasets)


def num_steps(config: TppConfig) -> int:
    """A step per data set."""
    return len(config.datasets)


def prepare(config: TppConfig, context: BenchmarkContext) -> SetUp:
    """Activations and probes of the language model, by sae-bench's own code, for every data set and hook."""
    return prepare_datasets(
        BENCHMARK,
        config,
        context,
        config.datasets,
        train_size=config.train_set_size,
        test_size=config.test_set_size,
        seed=config.random_seed,
        d_sae=2 * N_VALUES[0],
        run=lambda sae, labels, folder: _run(config, context, sae, labels, folder),
    )


def _run(
    config: TppConfig, context: BenchmarkContext, sae: "StoredSAE", labels: Labels, folder: Path
) -> tuple[dict[str, dict[int, dict[str, float]]], dict[str, float]]:
    """sae-bench's accuracies with latents at zero, by class, number of latents and probe, and those without."""
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig
    from sae_bench.evals.scr_and_tpp.main import run_eval_single_dataset

    settings = ScrAndTppEvalConfig(
        random_seed=config.random_seed,
        dataset_names=[labels.name],
        perform_scr=False,
        early_stopping_patience=config.early_stopping_patience,
        train_set_size=config.train_set_size,
        test_set_size=config.test_set_size,
        context_length=config.context_length,
        probe_epochs=config.probe_epochs,
        sae_batch_size=config.sae_batch_size,
        llm_batch_size=config.llm_batch_size,
        llm_dtype=context.manifest.spec.compute_dtype,
        model_name=sae.cfg.model_name,
        n_values=[n for n in N_VALUES if n <= sae.W_dec.shape[0]],
    )
    return run_eval_single_dataset(
        labels.name,
        settings,
        sae,
        language_model_later(context),
        sae.cfg.hook_layer,
        sae.cfg.hook_name,
        str(context.device),
        str(folder),
        save_activations=True,
    )


def measure(sae: EvaluatedSAE, config: TppConfig, context: BenchmarkContext, shared: SetUp) -> Measurement:
    """Accuracy that probes lose when the most important latents of a class are set to zero.

    Metrics: tpp_threshold_N_total_metric for N latents: what the class's own probe loses (intended_diff_only) minus
    what the others lose on average (unintended_diff_only); means over classes, then over data sets.
    """
    from sae_bench.evals.scr_and_tpp.main import create_tpp_plotting_dict

    from evaluate.sae_bench import to_sae_bench

    adapted = to_sae_bench(sae.weights, sae.card, device=context.device)
    begin_as_sae_bench(config.random_seed)
    by_dataset: dict[str, dict[str, float]] = {}
    details: dict[str, JsonValue] = {}
    accuracies: list[float] = []
    of_classes: list[dict[str, dict[str, float]]] = []
    errors: list[dict[str, float]] = []
    for labels in config.datasets:
        with kept_dataset(labels, shared[sae.card.hook, labels.name]):
            raw, clean = _run(config, context, adapted, labels, shared[sae.card.hook, labels.name])
        by_dataset[labels.name], by_class = create_tpp_plotting_dict(raw, clean)
        accuracies += clean.values()
        of_classes.append(cast("dict[str, dict[str, float]]", by_class))
        errors.append(sampling_variances(raw, clean, config.test_set_size))
        details[labels.name] = cast("JsonValue", {"llm_test_accuracies": clean, "tpp_metrics_by_class": by_class})
        context.progress(1)
    names = next(iter(by_dataset.values()))
    metrics = {name: math.fsum(found[name] for found in by_dataset.values()) / len(by_dataset) for name in names}
    metrics["llm_test_accuracy"] = math.fsum(accuracies) / len(accuracies)
    standard_errors = {name: math.sqrt(math.fsum(found[name] for found in errors)) / len(errors) for name in errors[0]}
    return Measurement(
        metrics=metrics,
        basis={
            "data_sets": len(by_dataset),
            "tasks": len(accuracies),
            "test_texts": len(accuracies) * config.test_set_size,
        },
        standard_errors=standard_errors,
        remarks=_remarks(metrics, standard_errors),
        arrays=as_arrays(without_one_task(of_classes)),
        details={"eval_result_details": cast("JsonValue", by_dataset), "by_data_set": details},
    )


def sampling_variances(
    perturbed: dict[str, dict[int, dict[str, float]]], clean: dict[str, float], texts: int
) -> dict[str, float]:
    """Squared standard errors on one data set, from the texts that a probe is tested on.

    What the probe of class c loses is the difference of two accuracies on the same texts, with and without latents,
    taken as if measured on different ones, which is too large. The probe of c suffers from the latents of every other
    class on the same texts, so that these losses together are one draw. In `total_metric` the clean accuracies cancel:
    it is the mean accuracy under the latents of other classes minus that under the probe's own. Classes are taken as
    independent.

    Args:
        perturbed: by class whose latents are zero, number of latents, and class of the probe: its accuracy.
        clean: accuracy of every probe with all latents.
        texts: tested for each class.
    """
    found: dict[str, float] = {}
    for threshold in next(iter(perturbed.values())):
        own, others = [], []
        for name in clean:
            own.append(_binomial(perturbed[name][threshold][name]))
            rest = [perturbed[other][threshold][name] for other in clean if other != name]
            others.append(_binomial(math.fsum(rest) / len(rest)))
        whole = [_binomial(accuracy) for accuracy in clean.values()]
        pairs = {"total_metric": (own, others), "intended_diff_only": (whole, own)}
        for kind, (first, second) in (pairs | {"unintended_diff_only": (whole, others)}).items():
            found[f"tpp_threshold_{threshold}_{kind}"] = math.fsum(first + second) / texts / len(clean) ** 2
    return found


def _binomial(accuracy: float) -> float:
    return max(accuracy * (1.0 - accuracy), 0.0)


def _remarks(metrics: dict[str, float], errors: dict[str, float]) -> tuple[str, ...]:
    found, accuracy = [], metrics["llm_test_accuracy"]
    if accuracy < USEFUL_PROBE:
        found.append(f"The probes themselves are right in {accuracy:.1%} of texts: perturbing them says little.")
    intended = [name for name in metrics if name.endswith("_intended_diff_only")]
    if all(abs(metrics[name]) <= 2.0 * errors[name] for name in intended):
        found.append(
            "No probe loses more than its sampling error, whatever latents are set to zero: they do not vary, or carry "
            "no class."
        )
    return tuple(found)


def _metrics() -> dict[str, Better]:
    found = {f"tpp_threshold_{n}_{kind}": better for n in N_VALUES for kind, better in KINDS.items()}
    return found | {"llm_test_accuracy": "neither"}


BENCHMARK = Benchmark(
    name="tpp",
    config=TppConfig,
    needs=frozenset({"language_model", "labelled_text"}),
    version=CodeVersion(
        number=3,
        files=(
            "evaluate/benchmarks/benchmark.py",
            "evaluate/benchmarks/context.py",
            "evaluate/benchmarks/tpp.py",
            "evaluate/hub_data.py",
            "evaluate/jackknife.py",
            "evaluate/labelled",
            "evaluate/loaded_model.py",
            "evaluate/sae_bench.py",
            "evaluate/substituted.py",
            "evaluate/throw_away.py",
            "language_model/checkpoint.py",
            "language_model/families.py",
            "language_model/hooks.py",
            "language_model/load.py",
            "language_model/special_tokens.py",
            "language_model/standard_library.py",
            "language_model/structure.py",
            "language_model/tokenizer.py",
            "store/sae/weights.py",
        ),
        code_sha256="11a52a9b982ae554ab81bc176d0efe65f2ec3aa1f5e07ffdc89af95aa9e8211c",
    ),
    metrics=_metrics(),
    optional=frozenset(name for name in _metrics() if name != "llm_test_accuracy"),
    units="tasks",
    headlines=("tpp_threshold_10_total_metric", "tpp_threshold_2_total_metric"),
    measures="Whether setting the latents of one class to zero harms the probe of that class and no other probe "
    "(sae-bench tpp).",
    prepare=prepare,
    measure=measure,
    not_run=not_run,
    depends_on=depends_on,
    num_steps=num_steps,
)
