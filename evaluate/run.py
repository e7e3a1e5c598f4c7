"""`pipeline.py evaluate`: one benchmark over all variants; what is unchanged is reused, the rest measured."""

import dataclasses
import functools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from compute.cluster import connect, refuse_other_software, run_on_workers
from compute.code_version import tell_if_edited
from compute.progress import progress, say
from evaluate.benchmarks.benchmark import Benchmark, NotMeasurable, NotRun
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.registry import BENCHMARKS
from evaluate.config import settings_of
from evaluate.dependencies import all_cards, diverged_at, held_out_tokens, result_inputs
from evaluate.judge.limits import JudgeLimits
from evaluate.results import result_path, switched_off, write_not_run
from evaluate.reuse import remove_outdated, set_aside, take_earlier, without_result
from evaluate.task import (
    EvaluationTask,
    Subject,
    evaluation_software,
    make_context,
    measure_and_write,
    run_task,
    set_up,
)
from language_model.config import LanguageModelConfig
from store.cache.manifest import load_manifest
from store.files.open import CachePlace, Place, open_files, place_of
from store.lease import exclusive_lock
from store.record import Record
from store.replace import check_target, replace_folder
from store.sae.artefact import SAECard

DEFAULT_SET_UP_BYTES = 20 * 2**30
"""What set-ups may take on disk between runs."""


def run(
    config: Record,
    *,
    benchmark: str,
    model: LanguageModelConfig | None,
    cache: Place,
    models_folder: Path,
    output: Path,
    scratch: Path,
    set_ups: Path,
    device: str,
    reuse: bool,
    set_up_bytes: int = DEFAULT_SET_UP_BYTES,
    scheduler: str | None = None,
    judge_limits: JudgeLimits | None = None,
) -> None:
    """Writes `<output>/<variant>.json` for every variant in `models_folder` that did not diverge, and nothing else.

    Where the benchmark is switched off or cannot run here, `<output>/_not_run.json` says why. Of the cache only the
    manifest is read, and held-out tokens and rows where the benchmark needs them. Results whose key is unchanged are
    taken over byte for byte from `scratch` (an interrupted run) or from earlier outputs. The output folder is replaced
    at the end, by renames.

    Args:
        config: an EvaluateConfig.
        set_ups: folder of what SAEs share, at most `set_up_bytes` of it after the run.
        scheduler: of a Dask cluster whose workers measure; None measures here.
        judge_limits: what a judge may cost; None is no limit.

    Raises:
        BenchmarkFailed: a variant could not be measured; names it. Finished variants stay in `scratch`.
        StoreError: the cache, a model or the language model is not what the others were made with.
    """
    entry, settings = known_benchmark(benchmark), settings_of(config, benchmark)
    own = scratch / benchmark
    with exclusive_lock(own):
        check_target(output, own)
        finished = own / "finished"
        finished.mkdir(exist_ok=True)
        if settings is None:
            _leave_out(benchmark, switched_off(benchmark), own, output, settings=None)
            return
        subject = Subject(
            benchmark=benchmark, settings=settings, model=model, cache=_anywhere(cache),
            models_folder=models_folder.resolve(), variants=(), set_ups=set_ups.resolve(),
            set_up_bytes=set_up_bytes, device=device, judge_limits=judge_limits or JudgeLimits(),
        )  # fmt: skip
        missing = _missing(entry, subject, finished, output=output, reuse=reuse)
        if missing:
            subject = dataclasses.replace(subject, variants=tuple(missing))
            context = make_context(subject)
            if "language_model" in entry.needs and not context.manifest.spec.is_synthetic:
                print(f"evaluate {benchmark}: the language model is in {context.model_folder}", file=sys.stderr)
            why_not = _no_language_model(entry, context) or entry.not_run(settings, context)
            if why_not is not None:
                _leave_out(benchmark, why_not, own, output, settings=settings)
                return
            tell_if_edited(entry.version, stage=f"evaluate {benchmark}", where=f"evaluate/benchmarks/{benchmark}.py")
            tasks = [
                EvaluationTask(
                    subject, variant, finished.resolve(), own.resolve() / "stop", evaluation_software(benchmark)
                )
                for variant in missing
            ]
            why_not = _measure(entry, tasks, context, scheduler=scheduler)
            context.kept.make_room()
            if why_not is not None:
                _leave_out(benchmark, why_not, own, output, settings=settings)
                return
        replace_folder(finished, output)
        shutil.rmtree(_aside(own), ignore_errors=True)


def _no_language_model(benchmark: Benchmark, context: BenchmarkContext) -> NotRun | None:
    """Why a benchmark that runs a language model cannot run where activations were made from known features."""
    if not context.manifest.spec.is_synthetic or "language_model" not in benchmark.needs or benchmark.rows_alone:
        return None
    return NotRun(
        "The activations were made from known features: there is no language model that could be run.",
        f"Set evaluate.{benchmark.name} to null, or harvest a language model.",
    )


def known_benchmark(name: str) -> Benchmark:
    """The entry of a benchmark that this version runs."""
    if name not in BENCHMARKS:
        raise ValueError(f"expected a benchmark among {', '.join(BENCHMARKS)}, got {name!r}")
    return BENCHMARKS[name]


def _anywhere(cache: Place) -> Place:
    """The place in words that another process understands."""
    return place_of(cache).absolute() if isinstance(cache, (CachePlace, Path, str)) else cache


def _aside(own: Path) -> Path:
    """Where results wait while their place holds the reason for not running."""
    return own / "aside"


def _leave_out(benchmark: str, why: NotRun, own: Path, output: Path, *, settings: Record | None) -> None:
    """Writes down, and says, that the benchmark is not run. Earlier results, and what is finished, stay in `own`."""
    print(f"evaluate {benchmark}: not run. {why.reason} {why.advice}", file=sys.stderr)
    set_aside(output, _aside(own))
    reason = own / "reason"
    shutil.rmtree(reason, ignore_errors=True)
    reason.mkdir()
    write_not_run(reason, benchmark, why, settings=settings)
    replace_folder(reason, output)


def _missing(benchmark: Benchmark, subject: Subject, finished: Path, *, output: Path, reuse: bool) -> list[str]:
    """The variants that have to be measured; results that are unchanged are in `finished` afterwards."""
    files = open_files(subject.cache)
    manifest = load_manifest(files)
    held_out = held_out_tokens(files, manifest, needed=benchmark.num_held_out_sequences(subject.settings))
    wanted = {
        variant: result_inputs(benchmark, subject.settings, card=card, manifest=manifest, held_out=held_out)
        for variant, card in all_cards(subject.models_folder, manifest).items()
        if not _is_left_out(benchmark.name, card)
    }
    remove_outdated(finished, wanted)
    missing = without_result(finished, wanted)
    if reuse and missing:
        take_earlier(finished, missing, output=str(output), aside=_aside(finished.parent))
        missing = without_result(finished, wanted)
    for variant in (name for name in wanted if name not in missing):
        print(f"evaluate {benchmark.name}: {variant} is unchanged and reused", file=sys.stderr)
    return list(missing)


def _is_left_out(benchmark: str, card: SAECard) -> bool:
    """Whether there is nothing to measure; says so."""
    step = diverged_at(card)
    if step is not None:
        print(f"evaluate {benchmark}: {card.name} diverged at step {step} and is not measured", file=sys.stderr)
    return step is not None


def _measure(
    benchmark: Benchmark, tasks: Sequence[EvaluationTask], context: BenchmarkContext, *, scheduler: str | None
) -> NotRun | None:
    """Sets up once, here, and measures each SAE here or on the workers, which find the set-up on disk.

    Returns why nothing can be measured, where the set-up found that out.
    """
    say(f"evaluate {benchmark.name}", f"sets up for {len(tasks)} SAE{'' if len(tasks) == 1 else 's'}")
    with progress(f"evaluate {benchmark.name}, set-up", total=None, unit="step") as steps:
        try:
            shared = set_up(tasks[0].subject, dataclasses.replace(context, progress=steps.update))
        except NotMeasurable as error:
            return error.why
    if scheduler is None:
        _measure_here(benchmark, tasks, context, shared)
    else:
        _measure_on_workers(benchmark, tasks, scheduler)
    return None


def _measure_here(
    benchmark: Benchmark, tasks: Sequence[EvaluationTask], context: BenchmarkContext, shared: object
) -> None:
    per_variant = benchmark.num_steps(tasks[0].subject.settings)
    with progress(f"evaluate {benchmark.name}", total=per_variant * len(tasks), unit="step") as steps:
        counted = dataclasses.replace(context, progress=steps.update)
        for done, task in enumerate(tasks):
            steps.detail(task.variant)
            measure_and_write(task, counted, shared)
            steps.reach(per_variant * (done + 1))


def _measure_on_workers(benchmark: Benchmark, tasks: Sequence[EvaluationTask], scheduler: str) -> None:
    with (
        connect(scheduler) as client,
        progress(f"evaluate {benchmark.name}", total=len(tasks), unit="SAE") as finished,
    ):

        def count() -> None:
            finished.reach(sum(result_path(task.finished, task.variant).exists() for task in tasks))

        software = functools.partial(evaluation_software, benchmark.name)
        refuse_other_software(client, tasks[0].software, software)
        stopped = run_on_workers(
            client,
            run_task,
            tasks,
            stop_file=tasks[0].stop_file,
            describe=lambda task: f"benchmark {benchmark.name} on {task.variant}",
            on_wait=count,
        )
        count()
    if stopped is not None:
        raise SystemExit(f"evaluate: {stopped}. Finished variants are kept: run the same command again to continue")
