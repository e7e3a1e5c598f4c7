"""The `sparse_probing` benchmark: sae-bench `sparse_probing`, probes on few latents that tell classes of texts apart.

Activations of the language model, and probes on them, are computed once per data set and hook by sae-bench's own code,
and kept. sae-bench keeps them under the data set's name alone; here the folder's name holds all that they depend on.

`sae_test_accuracy` (a probe on all latents) is the best of 100 epochs on the test texts themselves: it is optimistic.
The top-k probes are not. A text is its mean activation, without BOS, EOS and padding.
"""

import contextlib
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import AfterValidator, JsonValue

from compute.code_version import CodeVersion
from evaluate.benchmarks.benchmark import Benchmark, EvaluatedSAE, Measurement, NotRun
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.labelled.config import HubLabels, Labels, LabelsList
from evaluate.labelled.texts import identity, load, missing
from store.record import Record

if TYPE_CHECKING:
    from evaluate.sae_bench import StoredSAE

K_VALUES = (1, 2, 5)
"""sae-bench's default; other values would change the numbers of these, because probes share random numbers."""
CHANCE = 0.5
NEAR_CHANCE_WITHIN = 0.01


def _even(value: int) -> int:
    if value < 8 or value % 4:
        raise ValueError(f"expected a multiple of 4 from 8 on (two sides, two groups), got {value}. Change it")
    return value


Size = Annotated[int, AfterValidator(_even)]


class SparseProbingConfig(Record):
    """Settings of sae-bench's `sparse_probing`, under its names."""

    datasets: LabelsList
    """Which labelled texts."""
    probe_train_set_size: Size
    """Texts to train a probe of one class against the others; half of them are of the class."""
    probe_test_set_size: Size
    """Texts to test it."""
    context_length: int
    """Tokens of a text that are read; what is behind is cut off."""
    sae_batch_size: int = 125
    """Texts that the SAE encodes at once."""
    llm_batch_size: int = 32
    """Texts that the language model reads at once."""
    random_seed: int = 42


@dataclass(frozen=True)
class ProbingSetUp:
    """What all SAEs share."""

    folders: dict[tuple[str, str], Path]
    """By hook and data set: sae-bench's artifacts folder."""


def not_run(config: SparseProbingConfig, context: BenchmarkContext) -> NotRun | None:
    """Whether data sets are missing."""
    del context
    return why_missing(config.datasets, "sparse_probing")


def why_missing(labels: list[Labels], benchmark: str) -> NotRun | None:
    """Which data sets are not on this machine."""
    sentences = [sentence for item in labels if (sentence := missing(item))]
    if not sentences:
        return None
    return NotRun(" ".join(sentences), f"Put them there, or take them out of evaluate.{benchmark}.datasets.")


def depends_on(config: SparseProbingConfig) -> dict[str, JsonValue]:
    """Digests of the data sets."""
    return {"datasets": [identity(labels) for labels in config.datasets]}


def num_steps(config: SparseProbingConfig) -> int:
    """A step per data set."""
    return len(config.datasets)


def prepare(config: SparseProbingConfig, context: BenchmarkContext) -> ProbingSetUp:
    """Activations and probes of the language model, by sae-bench's own code, for every data set and hook."""
    folders = {}
    for labels in config.datasets:
        for hook in context.hooks:
            with context.kept.open("sparse_probing", set_up_inputs(BENCHMARK, config, context, labels, hook)) as kept:
                if not kept.is_complete:
                    _fill(config, context, labels, hook, kept.path)
                    kept.finish()
            folders[hook, labels.name] = kept.path
            context.progress(1)
    return ProbingSetUp(folders)


def set_up_inputs(
    benchmark: Benchmark,
    config: Any,
    context: BenchmarkContext,
    labels: Labels,
    hook: str,
) -> dict[str, JsonValue]:
    """Everything that decides activations and probes of a data set at a hook."""
    settings = {name: value for name, value in config if name != "datasets"}
    return {
        **benchmark.version.identity("version"),
        "labels": identity(labels),
        "settings": settings,
        "language_model": context.manifest.spec.model.identifying(),
        "compute_dtype": context.manifest.spec.compute_dtype,
        "device": context.device.type,
        "hook": hook,
    }


def _fill(config: SparseProbingConfig, context: BenchmarkContext, labels: Labels, hook: str, folder: Path) -> None:
    """Runs sae-bench on a throw-away SAE: it then keeps everything that is not about the SAE."""
    from evaluate.labelled.substitute import classes_of, known_to_sae_bench
    from evaluate.throw_away import throw_away_sae

    texts = None
    if not isinstance(labels, HubLabels):
        texts = load(
            labels,
            train_size=config.probe_train_set_size,
            test_size=config.probe_test_set_size,
            seed=config.random_seed,
        )
    classes = classes_of(labels, texts)
    sae = throw_away_sae(context, hook, d_sae=2 * max(K_VALUES))
    with known_to_sae_bench(labels, texts, classes=classes):
        _run(config, context, sae, labels, folder)
    (folder / "classes.json").write_text(json.dumps(classes))


def _run(
    config: SparseProbingConfig, context: BenchmarkContext, sae: "StoredSAE", labels: Labels, folder: Path
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """sae-bench's averages and accuracies by class on one data set."""
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
    from sae_bench.evals.sparse_probing.main import run_eval_single_dataset

    settings = SparseProbingEvalConfig(
        random_seed=config.random_seed,
        dataset_names=[labels.name],
        probe_train_set_size=config.probe_train_set_size,
        probe_test_set_size=config.probe_test_set_size,
        context_length=config.context_length,
        sae_batch_size=config.sae_batch_size,
        llm_batch_size=config.llm_batch_size,
        llm_dtype=context.manifest.spec.compute_dtype,
        model_name=sae.cfg.model_name,
        k_values=list(K_VALUES),
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return run_eval_single_dataset(
            labels.name,
            settings,
            sae,
            _Model(context),
            sae.cfg.hook_layer,
            sae.cfg.hook_name,
            str(context.device),
            str(folder),
            save_activations=True,
        )


def _Model(context: BenchmarkContext) -> Any:  # noqa: ANN401, N802 - a stand-in for the language model
    """The language model, loaded only if something is asked of it: with a set-up that is kept, nothing is."""
    from evaluate.loaded_model import hooked_later

    return hooked_later(lambda: context.language_model.bridge)


def measure(
    sae: EvaluatedSAE, config: SparseProbingConfig, context: BenchmarkContext, shared: ProbingSetUp
) -> Measurement:
    """Accuracies of probes on latents, and of the same probes on the language model's own channels.

    Metrics: sae_test_accuracy (all latents; see the top), sae_top_k_test_accuracy for k = 1, 2, 5, and the same of the
    language model as llm_...; means over classes, then over data sets. Chance is 0.5.
    """
    import random

    import torch

    from evaluate.labelled.substitute import known_to_sae_bench
    from evaluate.sae_bench import to_sae_bench

    adapted = to_sae_bench(sae.weights, sae.card, device=context.device)
    random.seed(config.random_seed)
    torch.manual_seed(config.random_seed)
    by_dataset: dict[str, dict[str, float]] = {}
    by_class: dict[str, JsonValue] = {}
    for labels in config.datasets:
        folder = shared.folders[sae.card.hook, labels.name]
        classes = json.loads((folder / "classes.json").read_text())
        with known_to_sae_bench(labels, None, classes=classes):
            by_dataset[labels.name], found = _run(config, context, adapted, labels, folder)
        by_class[labels.name] = cast("JsonValue", found)
        context.progress(1)
    metrics = {
        name: math.fsum(results[name] for results in by_dataset.values()) / len(by_dataset)
        for name in BENCHMARK.metrics
    }
    num_classes = sum(len(cast("dict[str, Any]", found)["sae_test_accuracy"]) for found in by_class.values())
    return Measurement(
        metrics=metrics,
        basis={
            "data_sets": len(by_dataset),
            "tasks": num_classes,
            "test_texts": num_classes * config.probe_test_set_size,
        },
        standard_errors=accuracy_errors(metrics, num_classes * config.probe_test_set_size),
        remarks=remarks(metrics),
        details={"eval_result_details": cast("JsonValue", by_dataset), "eval_result_unstructured": by_class},
    )


def accuracy_errors(metrics: dict[str, float], num_texts: int) -> dict[str, float]:
    """Binomial standard errors of accuracies over `num_texts` tests.

    Tests of the classes of one data set share texts, so that the true error is a little larger.
    """
    return {
        name: math.sqrt(max(value * (1.0 - value), 0.0) / num_texts)
        for name, value in metrics.items()
        if name.endswith("accuracy")
    }


def remarks(metrics: dict[str, float]) -> tuple[str, ...]:
    """Whether the probes on latents see nothing."""
    of_sae = [value for name, value in metrics.items() if name.startswith("sae_") and name.endswith("accuracy")]
    if any(abs(value - CHANCE) > NEAR_CHANCE_WITHIN for value in of_sae):
        return ()
    if all(value == CHANCE for value in of_sae):
        return (
            "Every probe on latents is at exactly 0.5, chance level: they see latents that do not vary (dead or "
            "constant). These numbers are no scores.",
        )
    return ("Every probe on latents is at chance level, 0.5: the latents say nothing about the classes.",)


BENCHMARK = Benchmark(
    name="sparse_probing",
    config=SparseProbingConfig,
    needs=frozenset({"language_model", "labelled_text"}),
    version=CodeVersion(
        number=1,
        files=(
            "evaluate/benchmarks/benchmark.py",
            "evaluate/benchmarks/context.py",
            "evaluate/benchmarks/sparse_probing.py",
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
        code_sha256="b9cc4978537d7bef08c11a10ab93652fc0dd12100bfbcdc2b8471db9e2474b93",
    ),
    metrics={
        "sae_test_accuracy": "higher",
        **{f"sae_top_{k}_test_accuracy": "higher" for k in K_VALUES},
        "llm_test_accuracy": "neither",
        **{f"llm_top_{k}_test_accuracy": "neither" for k in K_VALUES},
    },
    headlines=("sae_top_1_test_accuracy", "sae_top_5_test_accuracy"),
    measures="Whether 1, 2 or 5 latents suffice to tell classes of texts apart (sae-bench sparse_probing). The "
    "language model's own channels are probed in the same way.",
    prepare=prepare,
    measure=measure,
    not_run=not_run,
    depends_on=depends_on,
    num_steps=num_steps,
)
