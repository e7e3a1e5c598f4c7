"""Which results need no measuring: those that an interrupted run or an earlier output left, by their keys."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluate.results import BenchmarkResult, read_result, result_path, write_result
from store.atomic import link_or_copy
from store.care.dvc_versions import earlier_outputs
from store.errors import StoreError
from store.record import digest

Inputs = Mapping[str, dict[str, Any]]
"""By variant, everything that its result depends on."""


def without_result(finished: Path, wanted: Inputs) -> dict[str, dict[str, Any]]:
    """The part of `wanted` for which the folder `finished` holds no result."""
    return {variant: inputs for variant, inputs in wanted.items() if not result_path(finished, variant).exists()}


def remove_outdated(finished: Path, wanted: Inputs) -> None:
    """Removes what an interrupted run left for other settings, other weights or other variants."""
    for path in finished.iterdir():
        fits = False
        with contextlib.suppress(StoreError):
            fits = path.suffix == ".json" and path.stem in wanted
            fits = fits and _fits(read_result(path), wanted[path.stem], path.stem)
        if not fits:
            path.unlink()


def _fits(result: BenchmarkResult, inputs: dict[str, Any], variant: str) -> bool:
    return result.key == digest(inputs) and result.variant == variant


def take_earlier(finished: Path, missing: Inputs, *, output: str) -> None:
    """Puts unchanged results of earlier versions of `output` into `finished`.

    A result is the same file, or a copy under the new name of a variant that was renamed.
    """
    variants_of_key: dict[str, list[str]] = {}
    for variant, inputs in missing.items():
        variants_of_key.setdefault(digest(inputs), []).append(variant)
    for earlier in earlier_outputs(output):
        for path in earlier.values():
            try:
                result = read_result(path)
            except (StoreError, FileNotFoundError):
                continue  # not a result of ours: nothing to reuse
            for variant in variants_of_key.pop(result.key, ()):
                if variant == result.variant:
                    link_or_copy(path, result_path(finished, variant))
                else:
                    write_result(finished, result.model_copy(update={"variant": variant}))
        if not variants_of_key:
            return
