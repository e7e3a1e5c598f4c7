"""`pipeline.py evaluate`: one benchmark over all variants, unchanged results reused, the language model set up once."""

import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from evaluate.benchmarks.context import BenchmarkContext, EvaluatedSAE
from evaluate.benchmarks.registry import BENCHMARKS, Benchmark, measure
from evaluate.config import EvaluateConfig
from evaluate.results import BenchmarkResult, make_result, read_result, result_path, write_result
from evaluate.subjects import all_cards, diverged_at, held_out_tokens, result_inputs
from language_model.config import LanguageModelConfig
from language_model.load import identify, load_bridge, resolve
from store.atomic import link_or_copy, replace_folder
from store.cache.manifest import Manifest, load_manifest
from store.care.dvc_versions import earlier_outputs
from store.errors import MismatchedCache, StoreError
from store.files.open import Place, open_files
from store.lease import exclusive_lock
from store.record import Record, digest
from store.sae.artefact import SAECard, load_sae

# What a benchmark, its libraries and our adapter raise when something is wrong. All of it stops the run.
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


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
        finished = own / "finished"
        finished.mkdir(exist_ok=True)
        files = open_files(cache)
        manifest = load_manifest(files)
        held_out = held_out_tokens(files, manifest, settings) if entry.needs_language_model else None
        wanted = {
            variant: result_inputs(entry, settings, card=card, manifest=manifest, held_out=held_out)
            for variant, card in all_cards(models_folder, manifest).items()
            if not _left_out(benchmark, card)
        }
        _prune(finished, wanted)
        missing = _without_result(finished, wanted)
        if reuse and missing:
            _take_earlier(finished, missing, str(output))
            missing = _without_result(finished, wanted)
        for variant in (name for name in wanted if name not in missing):
            print(f"evaluate {benchmark}: {variant} is unchanged and reused", file=sys.stderr)
        if missing:
            context = _set_up(model, manifest, held_out, torch.device(device)) if held_out is not None else None
            _measure_all(entry, settings, missing, context, models_folder=models_folder, finished=finished)
        replace_folder(finished, output)


def known_benchmark(name: str) -> Benchmark:
    """The entry of a benchmark that this version runs."""
    if name not in BENCHMARKS:
        raise ValueError(f"expected a benchmark among {', '.join(BENCHMARKS)}, got {name!r}")
    return BENCHMARKS[name]


def _left_out(benchmark: str, card: SAECard) -> bool:
    """Whether there is nothing to measure; says so."""
    step = diverged_at(card)
    if step is not None:
        print(f"evaluate {benchmark}: {card.name} diverged at step {step} and is not measured", file=sys.stderr)
    return step is not None


def _without_result(finished: Path, wanted: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {variant: inputs for variant, inputs in wanted.items() if not result_path(finished, variant).exists()}


def _prune(finished: Path, wanted: dict[str, dict[str, Any]]) -> None:
    """Removes what an interrupted run left for other settings, other weights or other variants."""
    for path in finished.iterdir():
        fits = False
        with contextlib.suppress(StoreError):
            known = path.suffix == ".json" and path.stem in wanted
            fits = known and _fits(read_result(path), wanted[path.stem], path.stem)
        if not fits:
            path.unlink()


def _fits(result: BenchmarkResult, inputs: dict[str, Any], variant: str) -> bool:
    return result.key == digest(inputs) and result.variant == variant


def _take_earlier(finished: Path, missing: dict[str, dict[str, Any]], output: str) -> None:
    """Takes unchanged results of earlier runs: the same file, or a copy under the new name of a renamed variant."""
    variants_of_key: dict[str, list[str]] = {}
    for variant, inputs in missing.items():
        variants_of_key.setdefault(digest(inputs), []).append(variant)
    for earlier in earlier_outputs(output):
        for path in earlier.values():
            try:
                result = read_result(path)
            except (StoreError, OSError):
                continue  # not a result of ours: nothing to reuse
            for variant in variants_of_key.pop(result.key, ()):
                if variant == result.variant:
                    link_or_copy(path, result_path(finished, variant))
                else:
                    write_result(finished, result.model_copy(update={"variant": variant}))
        if not variants_of_key:
            return


def _set_up(
    model: LanguageModelConfig, manifest: Manifest, held_out: NDArray[np.uint32], device: torch.device
) -> BenchmarkContext:
    """Loads the language model that the cache was made with, in the dtype it ran in then."""
    folder = resolve(model.name, model.revision)
    identity = identify(folder, name=model.name, revision=model.revision)
    if identity != manifest.spec.model:
        raise MismatchedCache(
            f"expected the language model of the activation cache, {manifest.spec.model.name} with weights "
            f"{manifest.spec.model.weights_sha256[:12]}, got {identity.name} with weights "
            f"{identity.weights_sha256[:12]} in {folder}. Harvest with this language model, or evaluate with that one"
        )
    bridge = load_bridge(folder, dtype=getattr(torch, manifest.spec.compute_dtype), device=str(device))
    special = {identity.bos_token_id, bridge.tokenizer.eos_token_id, bridge.tokenizer.pad_token_id}
    return BenchmarkContext(
        bridge=bridge,
        tokens=held_out,
        ignored_token_ids=frozenset(token for token in special if token is not None),
        device=device,
        on_batch=_no_progress,
    )


def _no_progress() -> object:
    return None


def _measure_all(
    benchmark: Benchmark,
    settings: Record,
    missing: dict[str, dict[str, Any]],
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
            with _named(benchmark.name, variant):
                weights, card = load_sae(models_folder / variant)
                measurement = measure(benchmark, EvaluatedSAE(variant, weights, card), settings, counted)
                write_result(finished, make_result(benchmark, variant, inputs, measurement))
            progress.update(per_variant * (done + 1) - progress.n)


@contextlib.contextmanager
def _named(benchmark: str, variant: str) -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        reason = str(error) or type(error).__name__
        raise BenchmarkFailed(
            f"benchmark {benchmark} failed on variant {variant}: {reason}. No result was written for it; finished "
            "variants are kept, so running again continues here"
        ) from error
