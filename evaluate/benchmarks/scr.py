"""The `scr` benchmark: sae-bench's spurious correlation removal.

A probe is trained on texts in which two labels always agree, so that it uses both. The latents that matter most to a
probe of the one label are set to zero: the biased probe should become better at the other one. A score is the share of
its lost accuracy that comes back, 1 at best; it can be below 0.

Activations and probes of the language model are computed once per pair of labels and hook, and kept. sae-bench writes
probes as pickles; they are written as safetensors here.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import JsonValue

from compute.code_version import CodeVersion
from evaluate.benchmarks.benchmark import Benchmark, Better, EvaluatedSAE, Measurement, NotRun
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.labelled.hub import enough_texts
from evaluate.labelled.set_up import Epochs, NumTexts, begin_as_sae_bench, deciding, language_model_later
from evaluate.labelled.texts import missing_file
from evaluate.labelled.two_labels import (
    FilesTwoLabels,
    HubTwoLabels,
    Pair,
    PairTexts,
    TwoLabels,
    TwoLabelsList,
    identity,
    known_to_sae_bench,
    load_pair,
    pairs_of,
)
from evaluate.substituted import quiet
from store.record import Record

if TYPE_CHECKING:
    from evaluate.sae_bench import StoredSAE

N_VALUES = (2, 5, 10, 20, 50, 100, 500)
"""sae-bench's default. An SAE with fewer latents has no results of the larger ones."""
_BIASED = "male_professor / female_nurse"
_DATA = {1: "professor / nurse", 2: "male / female"}
"""sae-bench's names of the two labels, whatever they are: by direction, the label that the biased probe should keep."""
_LEAST_GAP = 0.001
"""sae-bench scores 0 where bias costs the probe less accuracy."""


class ScrConfig(Record):
    """Settings of sae-bench's `scr`, under its names."""

    datasets: TwoLabelsList
    """Which texts with two labels."""
    train_set_size: NumTexts
    """Texts to train a probe; a quarter from each of the four groups."""
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


SetUp = dict[tuple[str, str, Pair], Path]
"""By hook, data set and pair: sae-bench's artifacts folder."""
Raw = dict[str, dict[int, dict[str, float]]]
"""sae-bench's accuracies by ablated probe, number of latents, and probe with data."""


@dataclass(frozen=True)
class _Direction:
    """What bias costs the probe on one label: accuracies of an unbiased probe and of the biased one."""

    clean: float
    biased: float

    @property
    def gap(self) -> float:
        return self.clean - self.biased


def not_run(config: ScrConfig, context: BenchmarkContext) -> NotRun | None:
    """Whether data sets are missing."""
    del context
    found = [missing_file(item.name, item.path) for item in config.datasets if isinstance(item, FilesTwoLabels)]
    sentences = [sentence for sentence in found if sentence]
    if not sentences:
        return None
    return NotRun(" ".join(sentences), "Put them there, or take them out of evaluate.scr.datasets.")


def depends_on(config: ScrConfig) -> dict[str, JsonValue]:
    """Digests of the data sets."""
    return {"datasets": [identity(item) for item in config.datasets]}


def num_steps(config: ScrConfig) -> int:
    """A step per data set."""
    return len(config.datasets)


def prepare(config: ScrConfig, context: BenchmarkContext) -> SetUp:
    """Activations and probes of the language model, by sae-bench's own code, for every pair and hook."""
    from evaluate.throw_away import throw_away_sae

    folders: SetUp = {}
    for item in config.datasets:
        for pair in pairs_of(item):
            for hook in context.hooks:
                inputs: dict[str, JsonValue] = {
                    **BENCHMARK.version.identity("version"),
                    **deciding(config, context, hook),
                    "labels": {name: value for name, value in identity(item).items() if name != "pairs"},
                    "pair": list(pair),
                }
                with context.kept.open("scr", inputs) as kept:
                    if not kept.is_complete:
                        checks: AbstractContextManager[None]
                        texts: PairTexts | None
                        sizes = {"train_size": config.train_set_size, "test_size": config.test_set_size}
                        if isinstance(item, HubTwoLabels):
                            texts, checks = None, enough_texts(item.name, **sizes)
                        else:
                            texts, checks = load_pair(item, pair, seed=config.random_seed, **sizes), nullcontext()
                        begin_as_sae_bench(config.random_seed)
                        sae = throw_away_sae(context, hook, d_sae=2 * N_VALUES[0])
                        with checks:
                            _run(config, context, sae, item, pair, kept.path, texts)
                        kept.finish()
                folders[hook, item.name, pair] = kept.path
        context.progress(1)
    return folders


def _run(
    config: ScrConfig,
    context: BenchmarkContext,
    sae: "StoredSAE",
    item: TwoLabels,
    pair: Pair,
    folder: Path,
    texts: PairTexts | None = None,
) -> tuple[Raw, dict[str, float]]:
    """sae-bench's accuracies of one pair with latents at zero, and those without."""
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig
    from sae_bench.evals.scr_and_tpp.main import run_eval_single_dataset

    with known_to_sae_bench(item, texts) as name, quiet():
        settings = ScrAndTppEvalConfig(
            random_seed=config.random_seed,
            dataset_names=[name],
            perform_scr=True,
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
        return cast(
            "tuple[Raw, dict[str, float]]",
            run_eval_single_dataset(
                name,
                settings,
                sae,
                language_model_later(context),
                sae.cfg.hook_layer,
                sae.cfg.hook_name,
                str(context.device),
                str(folder),
                save_activations=True,
                column1_vals=pair,
            ),
        )


def measure(sae: EvaluatedSAE, config: ScrConfig, context: BenchmarkContext, shared: SetUp) -> Measurement:
    """Shares of the lost accuracy that come back when latents are set to zero.

    Metrics: scr_dir1_threshold_N and scr_dir2_threshold_N for N latents and either label, and scr_metric_threshold_N:
    of the label on which the biased probe is worse; missing where it is as good on both. Means over pairs. Beside them
    the accuracies of unbiased probes and of the biased one, llm_test_accuracy and llm_biased_accuracy.
    """
    from sae_bench.evals.scr_and_tpp.main import get_scr_plotting_dict

    from evaluate.sae_bench import to_sae_bench

    adapted = to_sae_bench(sae.weights, sae.card, device=context.device)
    begin_as_sae_bench(config.random_seed)
    by_pair: dict[str, dict[str, float]] = {}
    clean_by_pair: dict[str, dict[str, float]] = {}
    raw_by_pair: dict[str, Raw] = {}
    for item in config.datasets:
        for pair in pairs_of(item):
            raw, clean = _run(config, context, adapted, item, pair, shared[sae.card.hook, item.name, pair])
            run_name = f"{item.name}_scr_{pair[0]}_{pair[1]}"
            with quiet():
                scores = get_scr_plotting_dict(raw, clean)
            by_pair[run_name] = {name: float(score) for name, score in scores.items()}
            clean_by_pair[run_name], raw_by_pair[run_name] = clean, raw
        context.progress(1)
    directions = {name: _directions(clean) for name, clean in clean_by_pair.items()}
    both = [direction for found in directions.values() for direction in found.values()]
    metrics, errors = {}, {}
    for name in (name for name in BENCHMARK.metrics if name.startswith("scr_")):
        values = {pair_name: scores[name] for pair_name, scores in by_pair.items() if name in scores}
        if values:
            metrics[name] = math.fsum(values.values()) / len(values)
            error = _error(name, values, directions, config.test_set_size)
            if error is not None:
                errors[name] = error
    metrics["llm_test_accuracy"] = math.fsum(direction.clean for direction in both) / len(both)
    metrics["llm_biased_accuracy"] = math.fsum(direction.biased for direction in both) / len(both)
    return Measurement(
        metrics=metrics,
        basis={"data_sets": len(config.datasets), "pairs": len(by_pair), "test_texts": 2 * (config.test_set_size // 2)},
        standard_errors=errors,
        remarks=_remarks(metrics, both, config.test_set_size),
        details={
            "eval_result_details": cast("JsonValue", by_pair),
            "llm_test_accuracies": cast("JsonValue", clean_by_pair),
        },
    )


def _directions(clean: dict[str, float]) -> dict[int, _Direction]:
    return {number: _Direction(clean[data], clean[f"{_BIASED} probe on {data} data"]) for number, data in _DATA.items()}


def _error(
    metric: str, values: dict[str, float], directions: dict[str, dict[int, _Direction]], texts: int
) -> float | None:
    """The standard error of a score: over pairs where there are several.

    Of one pair it is that of the difference of two accuracies near the biased probe's over its gap, as if they had
    been measured on different texts, and as if the gap were known: the texts are the same, so that the one makes it too
    large and the other too small.
    """
    if len(values) > 1:
        mean = math.fsum(values.values()) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values.values())
        return math.sqrt(squares / (len(values) - 1) / len(values))
    (pair_name,) = values
    found = directions[pair_name]
    if metric.startswith("scr_metric"):
        direction = min(found.values(), key=lambda direction: direction.biased)
    else:
        direction = found[1 if metric.startswith("scr_dir1") else 2]
    if direction.gap < _LEAST_GAP:
        return None
    return math.sqrt(2.0 * direction.biased * (1.0 - direction.biased) / texts) / direction.gap


def _remarks(metrics: dict[str, float], both: list[_Direction], texts: int) -> tuple[str, ...]:
    found = []
    small = [
        direction
        for direction in both
        if direction.gap < 2.0 * math.sqrt(2.0 * direction.biased * (1.0 - direction.biased) / texts)
    ]
    if small:
        found.append(
            f"In {len(small)} of {len(both)} cases bias costs the probe no more accuracy than chance could, on {texts} "
            "test texts: a score that is divided by it is noise, and is 0 by definition where it costs nothing."
        )
    if not any(name.startswith("scr_metric") for name in metrics):
        found.append("The biased probe is equally good on both labels: sae-bench's scr_metric is not defined.")
    if all(value == 0.0 for name, value in metrics.items() if name.startswith("scr_")):
        found.append("No score moves, whatever latents are set to zero: they do not vary, or carry no label.")
    return tuple(found)


def _metrics() -> dict[str, Better]:
    kinds = ("metric", "dir1", "dir2")
    found: dict[str, Better] = {f"scr_{kind}_threshold_{n}": "higher" for n in N_VALUES for kind in kinds}
    return found | {"llm_test_accuracy": "neither", "llm_biased_accuracy": "neither"}


BENCHMARK = Benchmark(
    name="scr",
    config=ScrConfig,
    needs=frozenset({"language_model", "labelled_text"}),
    version=CodeVersion(
        number=1,
        files=(
            "evaluate/benchmarks/benchmark.py",
            "evaluate/benchmarks/context.py",
            "evaluate/benchmarks/scr.py",
            "evaluate/hub_data.py",
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
        code_sha256="b6924c8039c931758d8195a5c43826850615060c44e7f169d04a8f9646c5bbf6",
    ),
    metrics=_metrics(),
    optional=frozenset(name for name in _metrics() if name.startswith("scr_")),
    headlines=("scr_dir1_threshold_20", "scr_metric_threshold_20"),
    measures="Whether setting a few latents to zero removes a spurious correlation from a probe that was trained on "
    "biased texts (sae-bench scr).",
    prepare=prepare,
    measure=measure,
    not_run=not_run,
    depends_on=depends_on,
    num_steps=num_steps,
)
