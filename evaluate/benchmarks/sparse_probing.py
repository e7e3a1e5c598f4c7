"""The `sparse_probing` benchmark: sae-bench `sparse_probing`, probes on few latents that tell classes of texts apart.

Activations of the language model, and probes on them, are computed once per data set and hook by sae-bench's own code,
and kept: see evaluate/labelled/set_up.py.

`sae_test_accuracy` (a probe on all latents) is the best of 100 epochs on the test texts themselves: it is optimistic.
The top-k probes are not. A text is its mean activation, without BOS, EOS and padding.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import JsonValue

from compute.code_version import CodeVersion
from evaluate.benchmarks.benchmark import Benchmark, EvaluatedSAE, Measurement, NotRun
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.jackknife import as_arrays, without_one_task
from evaluate.labelled.config import Labels, LabelsList
from evaluate.labelled.set_up import (
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

K_VALUES = (1, 2, 5)
"""sae-bench's default; other values would change the numbers of these, because probes share random numbers."""
CHANCE = 0.5
NEAR_CHANCE_WITHIN = 0.01


class SparseProbingConfig(Record):
    """Settings of sae-bench's `sparse_probing`, under its names."""

    datasets: LabelsList
    """Which labelled texts."""
    probe_train_set_size: NumTexts
    """Texts to train a probe of one class against the others; half of them are of the class."""
    probe_test_set_size: NumTexts
    """Texts to test it."""
    context_length: int
    """Tokens of a text that are read; what is behind is cut off."""
    sae_batch_size: int = 125
    """Texts that the SAE encodes at once."""
    llm_batch_size: int = 32
    """Texts that the language model reads at once."""
    random_seed: int = 42


SetUp = dict[tuple[str, str], Path]
"""By hook and data set: sae-bench's artifacts folder."""


def not_run(config: SparseProbingConfig, context: BenchmarkContext) -> NotRun | None:
    """Whether data sets are missing."""
    del context
    return why_missing(config.datasets, "sparse_probing")


def depends_on(config: SparseProbingConfig) -> dict[str, JsonValue]:
    """Digests of the data sets."""
    return datasets_identity(config.datasets)


def num_steps(config: SparseProbingConfig) -> int:
    """A step per data set."""
    return len(config.datasets)


def prepare(config: SparseProbingConfig, context: BenchmarkContext) -> SetUp:
    """Activations and probes of the language model, by sae-bench's own code, for every data set and hook."""
    return prepare_datasets(
        BENCHMARK,
        config,
        context,
        config.datasets,
        train_size=config.probe_train_set_size,
        test_size=config.probe_test_set_size,
        seed=config.random_seed,
        d_sae=2 * max(K_VALUES),
        run=lambda sae, labels, folder: _run(config, context, sae, labels, folder),
    )


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


def measure(sae: EvaluatedSAE, config: SparseProbingConfig, context: BenchmarkContext, shared: SetUp) -> Measurement:
    """Accuracies of probes on latents, and of the same probes on the language model's own channels.

    Metrics: sae_test_accuracy (all latents; see the top), sae_top_k_test_accuracy for k = 1, 2, 5, and the same of the
    language model as llm_...; means over classes, then over data sets. Chance is 0.5.
    """
    from evaluate.sae_bench import to_sae_bench

    adapted = to_sae_bench(sae.weights, sae.card, device=context.device)
    begin_as_sae_bench(config.random_seed)
    by_dataset: dict[str, dict[str, float]] = {}
    by_class: dict[str, dict[str, dict[str, float]]] = {}
    for labels in config.datasets:
        folder = shared[sae.card.hook, labels.name]
        with kept_dataset(labels, folder):
            by_dataset[labels.name], found = _run(config, context, adapted, labels, folder)
        by_class[labels.name] = found
        context.progress(1)
    metrics = {
        name: math.fsum(results[name] for results in by_dataset.values()) / len(by_dataset)
        for name in BENCHMARK.metrics
    }
    num_classes = sum(len(found["sae_test_accuracy"]) for found in by_class.values())
    of_tasks = [
        {task: {name: found[name][task] for name in BENCHMARK.metrics} for task in found["sae_test_accuracy"]}
        for found in by_class.values()
    ]
    return Measurement(
        metrics=metrics,
        basis={
            "data_sets": len(by_dataset),
            "tasks": num_classes,
            "test_texts": num_classes * config.probe_test_set_size,
        },
        standard_errors=accuracy_errors(metrics, num_classes * config.probe_test_set_size),
        remarks=remarks(metrics),
        arrays=as_arrays(without_one_task(of_tasks)),
        details={
            "eval_result_details": cast("JsonValue", by_dataset),
            "eval_result_unstructured": cast("JsonValue", by_class),
        },
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
        number=3,
        files=(
            "evaluate/benchmarks/benchmark.py",
            "evaluate/benchmarks/context.py",
            "evaluate/benchmarks/sparse_probing.py",
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
        code_sha256="3b3845b0444caf9139f2b89f78986ef9e1bebfe40982a18d94552071a4a6b12f",
    ),
    metrics={
        "sae_test_accuracy": "higher",
        **{f"sae_top_{k}_test_accuracy": "higher" for k in K_VALUES},
        "llm_test_accuracy": "neither",
        **{f"llm_top_{k}_test_accuracy": "neither" for k in K_VALUES},
    },
    units="tasks",
    headlines=("sae_top_1_test_accuracy", "sae_top_5_test_accuracy"),
    measures="Whether 1, 2 or 5 latents suffice to tell classes of texts apart (sae-bench sparse_probing). The "
    "language model's own channels are probed in the same way.",
    prepare=prepare,
    measure=measure,
    not_run=not_run,
    depends_on=depends_on,
    num_steps=num_steps,
)
