"""What the report is made from: cards, logs, results and decoders, checked to belong together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evaluate.benchmarks.benchmark import NotRun
from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.config import settings_of
from evaluate.dependencies import diverged_at, fitting_card, held_out_tokens, result_inputs
from evaluate.jackknife import from_arrays
from evaluate.references import Reference, read_references
from evaluate.results import BenchmarkResult, read_arrays, read_not_run, read_result, result_path, switched_off
from store.cache.manifest import Manifest, load_manifest
from store.errors import StoreError
from store.files.local import LocalFiles
from store.files.open import Place, open_files
from store.files.protocol import Files
from store.harvest_log import HarvestLog, read_harvest_log
from store.record import Record
from store.sae.artefact import SAECard, load_sae, read_log

Value = TypeVar("Value")


@dataclass(frozen=True)
class ReportInputs:
    """Everything by variant, in the order of params.yaml."""

    manifest: Manifest
    cards: dict[str, SAECard]
    logs: dict[str, list[dict[str, Any]]]
    decoders: dict[str, Tensor]
    """W_dec (F, d)."""
    results: dict[str, dict[str, BenchmarkResult]]
    """By benchmark, then by variant; benchmarks that were not run are missing."""
    without_one: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)
    """By variant, under `<benchmark>/<metric>`: the metric without each sequence or task, where that is kept."""
    not_run: dict[str, NotRun] = field(default_factory=dict)
    """Benchmarks that are switched off or cannot run here, with the reason and what to do."""
    diverged: dict[str, int] = field(default_factory=dict)
    """Variants whose training diverged, with the step. They have no metrics and are in nothing above."""
    references: list[Reference] = field(default_factory=list)
    """Published results."""
    harvest_log: HarvestLog | None = None
    """How the cache came about, where that lies beside it."""

    def only(self, variants: Sequence[str]) -> "ReportInputs":
        """The inputs on some of the variants."""

        def some(by_variant: Mapping[str, Value]) -> dict[str, Value]:
            return {name: by_variant[name] for name in variants}

        return ReportInputs(
            manifest=self.manifest,
            cards=some(self.cards),
            logs=some(self.logs),
            decoders=some(self.decoders),
            results={benchmark: some(results) for benchmark, results in self.results.items()},
            without_one={name: self.without_one.get(name, {}) for name in variants},
            not_run=self.not_run,
            diverged=self.diverged,
            references=self.references,
            harvest_log=self.harvest_log,
        )

    def standard_errors(self) -> dict[str, dict[str, float]]:
        """Sampling errors by variant, under `<benchmark>/<metric>`, of the metrics that have one."""
        return {
            variant: {
                f"{benchmark}/{metric}": error
                for benchmark, by_variant in self.results.items()
                for metric, error in by_variant[variant].standard_errors.items()
            }
            for variant in self.cards
        }

    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics of all benchmarks by variant, under `<benchmark>/<metric>`."""
        return {
            variant: {
                f"{benchmark}/{metric}": value
                for benchmark, by_variant in self.results.items()
                for metric, value in by_variant[variant].metrics.items()
            }
            for variant in self.cards
        }


def gather(
    config: Record,
    *,
    variants: Sequence[str],
    models_folder: Path,
    results_folder: Path,
    cache: Place,
    references: Path | None = None,
) -> ReportInputs:
    """Reads all that belongs to `variants` and nothing else.

    Raises:
        StoreError: a model or a result is missing, damaged, or belongs to other weights, settings or data. The message
            lists every such file and says what to do.
    """
    files = open_files(cache)
    manifest = load_manifest(files)
    absent = [str(models_folder / name) for name in variants if not (models_folder / name).is_dir()]
    if absent:
        where = ", ".join(absent)
        raise StoreError(f"expected a trained SAE in {where}, found none. Run dvc repro, or dvc pull models")
    cards = {name: fitting_card(models_folder / name, manifest) for name in variants}
    diverged = {name: step for name, card in cards.items() if (step := diverged_at(card)) is not None}
    cards = {name: card for name, card in cards.items() if name not in diverged}
    if not cards:
        raise StoreError(f"expected an SAE that trained to the end in {models_folder}, but all diverged. Train again")
    logs, decoders = {}, {}
    for name in cards:
        decoders[name] = load_sae(models_folder / name)[0].W_dec
        logs[name] = read_log(models_folder / name)
    not_run = {name: why for name in BENCHMARKS if (why := _why_not_run(name, config, results_folder)) is not None}
    wanted = {
        name: _inputs(name, settings, files, manifest, cards)
        for name in BENCHMARKS
        if name not in not_run and (settings := settings_of(config, name)) is not None
    }
    results = _results(results_folder, wanted)
    return ReportInputs(
        manifest=manifest,
        cards=cards,
        logs=logs,
        decoders=decoders,
        results=results,
        without_one={name: _without_one(results_folder, results, name) for name in cards},
        not_run=not_run,
        diverged=diverged,
        references=read_references(references),
        harvest_log=read_harvest_log(files.folder, digest=manifest.digest) if isinstance(files, LocalFiles) else None,
    )


def _why_not_run(benchmark: str, config: Record, results_folder: Path) -> NotRun | None:
    """Why there are no results of a benchmark; None where there must be some."""
    settings = settings_of(config, benchmark)
    if settings is None:
        return switched_off(benchmark)
    return read_not_run(results_folder / benchmark, settings=settings)


def _inputs(
    benchmark: str, settings: Record, files: Files, manifest: Manifest, cards: Mapping[str, SAECard]
) -> dict[str, dict[str, Any]]:
    """What the result of each variant must have been made from."""
    entry = BENCHMARKS[benchmark]
    held_out = held_out_tokens(files, manifest, needed=entry.num_held_out_sequences(settings))
    return {
        name: result_inputs(entry, settings, card=card, manifest=manifest, held_out=held_out)
        for name, card in cards.items()
    }


def _results(
    results_folder: Path, wanted: Mapping[str, Mapping[str, dict[str, Any]]]
) -> dict[str, dict[str, BenchmarkResult]]:
    """All results, or one error that lists everything that is missing or stale."""
    problems: list[str] = []
    results: dict[str, dict[str, BenchmarkResult]] = {}
    for benchmark, inputs_by_variant in wanted.items():
        results[benchmark] = {}
        for variant, inputs in inputs_by_variant.items():
            path = result_path(results_folder / benchmark, variant)
            if not path.exists():
                problems.append(f"{path} is missing")
                continue
            result = read_result(path)
            problems += _mismatches(path, result, benchmark, variant, inputs)
            results[benchmark][variant] = result
    if problems:
        raise StoreError(
            f"expected one fresh result per benchmark and variant in {results_folder}: {'; '.join(problems)}. "
            "Run dvc repro (or dvc pull results, after a partial pull); no report was written"
        )
    return results


def _without_one(
    results_folder: Path, results: Mapping[str, Mapping[str, BenchmarkResult]], variant: str
) -> dict[str, NDArray[np.float64]]:
    """The metrics of one variant without each unit of the test material; a DamagedFile where a file was changed."""
    return {
        f"{benchmark}/{metric}": values
        for benchmark, by_variant in results.items()
        if BENCHMARKS[benchmark].units and by_variant[variant].arrays_sha256 is not None
        for metric, values in from_arrays(read_arrays(results_folder / benchmark, by_variant[variant])).items()
    }


def _mismatches(
    path: Path, result: BenchmarkResult, benchmark: str, variant: str, inputs: Mapping[str, Any]
) -> list[str]:
    if (result.benchmark, result.variant) != (benchmark, variant):
        return [f"{path} holds {result.benchmark} of {result.variant}"]
    names = sorted(name for name in inputs.keys() | result.inputs.keys() if result.inputs.get(name) != inputs.get(name))
    return [f"{path} is stale: it was made with other {', '.join(names)}"] if names else []
