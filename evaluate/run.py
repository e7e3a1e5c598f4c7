"""`pipeline.py evaluate`: one benchmark over all variants; what is unchanged is reused, the rest measured."""

import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from evaluate.benchmarks.context import BenchmarkContext, EvaluatedSAE
from evaluate.benchmarks.registry import BENCHMARKS, Benchmark, measure
from evaluate.config import EvaluateConfig
from evaluate.dependencies import all_cards, diverged_at, held_out_tokens, result_inputs
from evaluate.results import make_result, write_result
from evaluate.reuse import remove_outdated, take_earlier, without_result
from evaluate.set_up import set_up
from language_model.config import LanguageModelConfig
from store.cache.manifest import load_manifest
from store.files.open import Place, open_files
from store.lease import exclusive_lock
from store.record import Record
from store.replace import check_target, replace_folder
from store.sae.artefact import SAECard, load_sae


class BenchmarkFailed(ValueError):
    """A benchmark could not be completed on one variant."""


def run(
    config: EvaluateConfig,
    *,
    benchmark: str,
    model: LanguageModelConfig,
    cache: Place,
    models_folder: Path,
    output: Path,
    scratch: Path,
    device: str,
    reuse: bool,
) -> None:
    """Writes `<output>/<variant>.json` for every variant in `models_folder` that did not diverge, and nothing else.

    Of the cache only the manifest is read, and the held-out tokens where the benchmark needs the language model.
    Results whose key is unchanged are taken over byte for byte from `scratch` (an interrupted run) or from earlier
    outputs. The output folder is replaced at the end, by renames.

    Raises:
        BenchmarkFailed: a variant could not be measured; names it. Finished variants stay in `scratch`.
        StoreError: the cache, a model or the language model is not what the others were made with.
    """
    entry = known_benchmark(benchmark)
    settings: Record = getattr(config, benchmark)
    own = scratch / benchmark
    with exclusive_lock(own):
        check_target(output, own)
        finished = own / "finished"
        finished.mkdir(exist_ok=True)
        files = open_files(cache)
        manifest = load_manifest(files)
        held_out = held_out_tokens(files, manifest, settings) if entry.needs_language_model else None
        wanted = {
            variant: result_inputs(entry, settings, card=card, manifest=manifest, held_out=held_out)
            for variant, card in all_cards(models_folder, manifest).items()
            if not _is_left_out(benchmark, card)
        }
        remove_outdated(finished, wanted)
        missing = without_result(finished, wanted)
        if reuse and missing:
            take_earlier(finished, missing, output=str(output))
            missing = without_result(finished, wanted)
        for variant in (name for name in wanted if name not in missing):
            print(f"evaluate {benchmark}: {variant} is unchanged and reused", file=sys.stderr)
        if missing:
            context = set_up(model, manifest, held_out, torch.device(device)) if held_out is not None else None
            _measure_all(entry, settings, missing, context, models_folder=models_folder, finished=finished)
        replace_folder(finished, output)


def known_benchmark(name: str) -> Benchmark:
    """The entry of a benchmark that this version runs."""
    if name not in BENCHMARKS:
        raise ValueError(f"expected a benchmark among {', '.join(BENCHMARKS)}, got {name!r}")
    return BENCHMARKS[name]


def _is_left_out(benchmark: str, card: SAECard) -> bool:
    """Whether there is nothing to measure; says so."""
    step = diverged_at(card)
    if step is not None:
        print(f"evaluate {benchmark}: {card.name} diverged at step {step} and is not measured", file=sys.stderr)
    return step is not None


def _measure_all(
    benchmark: Benchmark,
    settings: Record,
    missing: Mapping[str, dict[str, Any]],
    context: BenchmarkContext | None,
    *,
    models_folder: Path,
    finished: Path,
) -> None:
    """Measures each missing variant and writes its result at once, so that a killed run continues after it."""
    per_variant: int = importlib.import_module(benchmark.module).num_batches(settings)
    with tqdm(total=per_variant * len(missing), desc=f"evaluate {benchmark.name}", unit="batch") as progress:
        counted = context and dataclasses.replace(context, on_batch=progress.update)
        for done, (variant, inputs) in enumerate(missing.items()):
            progress.set_postfix_str(variant)
            with _failures_named(benchmark.name, variant):
                weights, card = load_sae(models_folder / variant)
                measurement = measure(benchmark, EvaluatedSAE(variant, weights, card), settings, counted)
                write_result(finished, make_result(benchmark, variant, inputs, measurement))
            progress.update(per_variant * (done + 1) - progress.n)


@contextlib.contextmanager
def _failures_named(benchmark: str, variant: str) -> Iterator[None]:
    """Names the variant on which a benchmark failed.

    A benchmark fails in two ways: something it was given cannot be used (ValueError: a damaged SAE, too little text, a
    metric that is not finite), or the GPU's memory does not suffice. All else is a bug or the machine's, and passes as
    it is; the results that are finished are written already.
    """
    kept = "No result was written for it; finished variants are kept, so running again continues here"
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BenchmarkFailed(
            f"benchmark {benchmark} ran out of the GPU's memory on variant {variant}. Lower its batch size in "
            f"evaluate.{benchmark}, or use a larger GPU. {kept}"
        ) from error
    except ValueError as error:
        raise BenchmarkFailed(f"benchmark {benchmark} failed on variant {variant}: {error}. {kept}") from error
