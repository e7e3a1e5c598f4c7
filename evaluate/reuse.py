"""Which results need no measuring: those that an interrupted run or an earlier output left, by their keys."""

import contextlib
import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluate.results import (
    ARRAYS_SUFFIX,
    NOT_RUN_FILE,
    BenchmarkResult,
    arrays_path,
    has_arrays,
    read_result,
    result_path,
    write_result,
)
from store.atomic import link_or_copy
from store.care.dvc_versions import earlier_outputs, files_in
from store.errors import StoreError
from store.record import digest

Inputs = Mapping[str, dict[str, Any]]
"""By variant, everything that its result depends on."""


def without_result(finished: Path, wanted: Inputs) -> dict[str, dict[str, Any]]:
    """The part of `wanted` for which the folder `finished` holds no result."""
    return {variant: inputs for variant, inputs in wanted.items() if not result_path(finished, variant).exists()}


def remove_outdated(finished: Path, wanted: Inputs) -> None:
    """Removes what an interrupted run left for other settings, other weights or other variants."""
    kept = set()
    for path in finished.glob("*.json"):
        with contextlib.suppress(StoreError):
            if path.stem in wanted and _fits(result := read_result(path), wanted[path.stem], path.stem):
                arrays = arrays_path(finished, path.stem)
                if has_arrays(result, arrays):
                    kept |= {path} if result.arrays_sha256 is None else {path, arrays}
    for path in set(finished.iterdir()) - kept:
        path.unlink()


def _fits(result: BenchmarkResult, inputs: dict[str, Any], variant: str) -> bool:
    return result.key == digest(inputs) and result.variant == variant


def set_aside(output: Path, folder: Path) -> None:
    """Keeps the results of `output` in `folder`, for the run after one that puts the reason for not running there."""
    results = {name: path for name, path in files_in(output).items() if name != NOT_RUN_FILE}
    if results:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, path in results.items():
            link_or_copy(path, folder / name)


def take_earlier(finished: Path, missing: Inputs, *, output: str, aside: Path) -> None:
    """Puts unchanged results of earlier versions of `output`, or of those set `aside`, into `finished`.

    A result is the same file, or a copy under the new name of a variant that was renamed.
    """
    variants_of_key: dict[str, list[str]] = {}
    for variant, inputs in missing.items():
        variants_of_key.setdefault(digest(inputs), []).append(variant)
    for earlier in itertools.chain([files_in(aside)], earlier_outputs(output)):
        for name, path in earlier.items():
            if not name.endswith(".json"):
                continue
            arrays = earlier.get(f"{name.removesuffix('.json')}{ARRAYS_SUFFIX}")
            try:
                result = read_result(path)
            except (StoreError, FileNotFoundError):
                continue  # not a result of ours: nothing to reuse
            if result.key not in variants_of_key or not has_arrays(result, arrays):
                continue
            for variant in variants_of_key.pop(result.key):
                if arrays is not None and result.arrays_sha256 is not None:
                    link_or_copy(arrays, arrays_path(finished, variant))
                if variant == result.variant:
                    link_or_copy(path, result_path(finished, variant))
                else:
                    write_result(finished, result.model_copy(update={"variant": variant}))
        if not variants_of_key:
            return
