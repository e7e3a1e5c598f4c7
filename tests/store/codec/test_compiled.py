"""Compiled functions where their machine code can be kept, and where it cannot: the same numbers, and no error."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from store.cache.order import _shuffle, keyed_permutation
from store.codec.compiled import compiled
from tests.imports import ROOT, files_of, packages
from tests.machine import as_nobody, copy_of_the_code, folder_for_all, writable_again

PROGRAM = """
import numpy as np, zarr
import harvest.moments, train.steps.topk
from store.cache.order import keyed_permutation
from store.codec.bf16_planes import encode_planes
print(keyed_permutation(10, 1, 2).tolist())
print(encode_planes(np.arange(6, dtype=np.uint16).reshape(2, 3)).hex())
print(zarr.registry.get_codec_class("bf16_planes_v1").__name__)
"""


def run(code: Path, home: Path, *, user: list[str]) -> str:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(code), "HOME": str(home)}
    done = subprocess.run(
        [*user, sys.executable, "-B", "-c", PROGRAM],
        cwd=code, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_code_and_home_that_cannot_be_written_give_the_same_numbers_without_a_cache() -> None:
    user = as_nobody()
    with folder_for_all() as folder:
        code = copy_of_the_code(folder / "code")
        try:
            alone = run(code, Path("/nonexistent"), user=user)
        finally:
            writable_again(code)
        assert not list(code.rglob("*.nbi"))
    assert alone == run(ROOT, Path.home(), user=[])
    assert str(keyed_permutation(10, 1, 2).tolist()) in alone


def test_machine_code_is_kept_where_it_can_be() -> None:
    assert type(_shuffle._cache).__name__ == "_OptionalCache"  # type: ignore[attr-defined]
    assert Path(_shuffle._cache.cache_path).is_dir()  # type: ignore[attr-defined]


@compiled
def _twice(number: int) -> int:
    return 2 * number


@pytest.mark.parametrize("failing", ["open", "os.replace"])
def test_a_full_disk_or_a_file_of_somebody_else_stops_no_program(
    failing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    function = compiled(_twice.py_func)  # type: ignore[attr-defined]
    assert str(tmp_path) in function._cache.cache_path

    def full(*_arguments: object, **_others: object) -> None:
        raise OSError(28, "No space left on device")

    if failing == "open":
        monkeypatch.setattr("numba.core.caching.open", full, raising=False)
    else:
        monkeypatch.setattr("numba.core.caching.os.replace", full)
    assert function(21) == 42
    assert function(np.float64(1.5)) == 3.0


def test_nothing_is_compiled_past_this_door() -> None:
    """numba's own decorator with a cache raises at import where nothing can be written."""
    for path in files_of(*packages()):
        assert not re.search(r"njit\(.*cache=True", (ROOT / path).read_text()), path
