"""The measuring of one SAE by one benchmark, here or on a worker: plain data that says all about it, and the work."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from compute.progress import say
from compute.software import Software, software_here
from evaluate.benchmarks.benchmark import EvaluatedSAE, NotMeasurable
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.registry import BENCHMARKS, check_measurement
from evaluate.dependencies import all_cards, held_out_tokens, result_inputs
from evaluate.isolation import undisturbed
from evaluate.judge.limits import JudgeLimits
from evaluate.kept import KeptSetUps
from evaluate.results import arrays_bytes, make_result, not_measured, write_result
from language_model.config import LanguageModelConfig
from store.cache.manifest import load_manifest
from store.files.open import Place, open_files
from store.record import Record
from store.sae.artefact import load_sae

SEED = 0
"""Every set-up and every SAE begins with it, so that no result depends on what ran before."""


class BenchmarkFailed(ValueError):
    """A benchmark could not be completed on one variant."""


@dataclass(frozen=True)
class Subject:
    """One benchmark with its settings, and where everything is. The same for all SAEs of a run."""

    benchmark: str
    settings: Record
    model: LanguageModelConfig | None
    cache: Place
    models_folder: Path
    variants: tuple[str, ...]
    """Those that are measured in this run."""
    set_ups: Path
    set_up_bytes: int
    device: str
    judge_limits: JudgeLimits = field(default_factory=JudgeLimits)
    """What a judge may cost."""


@dataclass(frozen=True)
class EvaluationTask:
    """One SAE to be measured."""

    subject: Subject
    variant: str
    finished: Path
    """Where the result goes."""
    stop_file: Path
    software: Software


def evaluation_software(benchmark: str) -> Software:
    """The code and packages that decide the results of a benchmark, as they are in this process."""
    return software_here(BENCHMARKS[benchmark].version.files)


def make_context(subject: Subject) -> BenchmarkContext:
    """What the benchmark may use; nothing is loaded yet but the manifest and held-out tokens."""
    files = open_files(subject.cache)
    manifest = load_manifest(files)
    benchmark = BENCHMARKS[subject.benchmark]
    cards = all_cards(subject.models_folder, manifest)
    return BenchmarkContext(
        place=files,
        manifest=manifest,
        model=subject.model,
        cards={name: cards[name] for name in subject.variants},
        models_folder=subject.models_folder,
        held_out=held_out_tokens(files, manifest, needed=benchmark.num_held_out_sequences(subject.settings)),
        kept=KeptSetUps(subject.set_ups, budget_bytes=subject.set_up_bytes),
        device=torch.device(subject.device),
        judge_limits=subject.judge_limits,
    )


def set_up(subject: Subject, context: BenchmarkContext) -> object:
    """What all SAEs share: computed, or found where it was kept."""
    benchmark = BENCHMARKS[subject.benchmark]
    with _failures_named(subject.benchmark, "the set-up"), undisturbed(seed=SEED):
        return benchmark.prepare(subject.settings, context)


def measure_and_write(task: EvaluationTask, context: BenchmarkContext, shared: object) -> None:
    """Measures the SAE and writes its result at once, so that a killed run continues after it."""
    subject, benchmark = task.subject, BENCHMARKS[task.subject.benchmark]
    with _failures_named(subject.benchmark, f"variant {task.variant}"), undisturbed(seed=SEED):
        weights, card = load_sae(subject.models_folder / task.variant)
        inputs = result_inputs(
            benchmark, subject.settings, card=card, manifest=context.manifest, held_out=context.held_out
        )
        try:
            sae = EvaluatedSAE(task.variant, weights, card)
            measurement = benchmark.measure(sae, subject.settings, context, shared)
        except NotMeasurable as error:
            say(f"evaluate {subject.benchmark}", f"{task.variant} is not measured. {error.why.reason}")
            write_result(task.finished, not_measured(benchmark, task.variant, inputs, error.why))
            return
        check_measurement(benchmark, measurement)
        arrays = arrays_bytes(measurement)
        write_result(task.finished, make_result(benchmark, task.variant, inputs, measurement, arrays), arrays)


def run_task(task: EvaluationTask) -> str | None:
    """On a worker: what stopped it, if anything did.

    Raises:
        BenchmarkFailed: the SAE could not be measured.
        OtherSoftware: (a ValueError) the run was started with other code or packages than those here.
    """
    task.software.refuse_other(evaluation_software(task.subject.benchmark))
    if task.stop_file.exists():
        return task.stop_file.read_text() or "a stop file"
    context, shared = _of_this_worker(task.subject)
    measure_and_write(task, context, shared)
    return None


def _of_this_worker(subject: Subject) -> tuple[BenchmarkContext, object]:
    """Context and set-up, loaded once for all SAEs that this process measures."""
    if _LOADED is None or _LOADED[0] != subject:
        context = make_context(subject)
        globals()["_LOADED"] = (subject, context, set_up(subject, context))
    assert _LOADED is not None
    return _LOADED[1], _LOADED[2]


_LOADED: tuple[Subject, BenchmarkContext, object] | None = None


@contextlib.contextmanager
def _failures_named(benchmark: str, what: str) -> Iterator[None]:
    """Names what a benchmark failed on.

    A benchmark fails in two ways: something it was given cannot be used (ValueError: a damaged SAE, too little text, a
    metric that is not finite), or the GPU's memory does not suffice. All else is a bug or the machine's, and passes as
    it is; the results that are finished are written already.
    """
    kept = "No result was written for it; finished variants are kept, so running again continues here"
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BenchmarkFailed(
            f"benchmark {benchmark} ran out of the GPU's memory on {what}. Lower its batch size in "
            f"evaluate.{benchmark}, or use a larger GPU. {kept}"
        ) from error
    except ValueError as error:
        raise BenchmarkFailed(f"benchmark {benchmark} failed on {what}: {error}. {kept}") from error
