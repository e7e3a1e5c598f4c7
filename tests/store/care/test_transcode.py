"""An export is a cache of its own with the same rows; it goes on where it was stopped and overwrites nothing."""

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from store.cache.manifest import load_manifest
from store.cache.split import SPLITS
from store.care.transcode import export
from store.care.verify import verify
from store.codec.names import CODEC_NAMES, CodecName
from store.errors import Busy, DamagedFile, StoreError
from store.lease import acquire
from store.read.cache import ActivationCache
from tests.store.cache_fixture import HOOKS

MakeCache = Callable[..., Path]
ROOT = Path(__file__).parents[3]

# Exports and dies when the second shard is handed over, after the first is committed.
KILLED = """
import os, signal, sys
from pathlib import Path
import store.write.writer
from store.care.transcode import export

submit = store.write.writer.CacheWriter.submit_shard

def dying(self, shard, **arguments):
    if shard == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    submit(self, shard, **arguments).result()

store.write.writer.CacheWriter.submit_shard = dying
export(Path(sys.argv[1]), Path(sys.argv[2]), codec="zstd", num_threads=1)
"""


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_the_rows_and_tokens_are_the_same_in_every_codec(cache_folder: Path, tmp_path: Path, codec: CodecName) -> None:
    source = ActivationCache(cache_folder)
    manifest = export(cache_folder, tmp_path / "deep" / "exported", codec=codec, num_threads=1)
    exported = ActivationCache(tmp_path / "deep" / "exported")
    assert exported.manifest == manifest
    assert verify(tmp_path / "deep" / "exported", full=True, num_threads=1) == []
    for split in SPLITS:
        numbers = np.arange(source.manifest.split_rows(split))
        np.testing.assert_array_equal(exported.tokens(split=split), source.tokens(split=split))
        for hook in HOOKS:
            rows = exported.rows(hook, numbers, split=split)
            np.testing.assert_array_equal(rows, source.rows(hook, numbers, split=split))
    assert exported.spec == source.spec.model_copy(update={"codec": codec})
    (origin,) = manifest.lineage
    assert (origin.kind, origin.source_digest, origin.source_codec) == (
        "exported",
        source.manifest.digest,
        "bf16_planes_v1",
    )
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["exported"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
        plain = np.asarray(zarr.open_array(tmp_path / "deep" / "exported" / HOOKS[0], mode="r")[:])
        assert np.array_equal(plain, np.asarray(zarr.open_array(cache_folder / HOOKS[0], mode="r")[:]))


def test_an_export_of_an_export_names_both(cache_folder: Path, tmp_path: Path) -> None:
    first = export(cache_folder, tmp_path / "first", codec="none", num_threads=1)
    second = export(tmp_path / "first", tmp_path / "second", codec="bf16_planes_v1", num_threads=1)
    assert [origin.source_digest for origin in second.lineage] == [load_manifest(cache_folder).digest, first.digest]
    assert second.files["tokens/c/0/0"] == load_manifest(cache_folder).files["tokens/c/0/0"]
    row_shard = f"{HOOKS[0]}/c/0/0"
    assert second.files[row_shard] == load_manifest(cache_folder).files[row_shard]


def test_exporting_again_does_nothing_and_nothing_is_overwritten(cache_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    manifest = export(cache_folder, target, codec="zstd", num_threads=1)
    inodes = {path: path.stat().st_ino for path in target.rglob("*")}
    assert export(cache_folder, target, codec="zstd", num_threads=1) == manifest
    assert {path: path.stat().st_ino for path in target.rglob("*")} == inodes
    with pytest.raises(
        StoreError, match=r"expected nothing at .*exported, or the result of this .*; found another cache"
    ):
        export(cache_folder, target, codec="none", num_threads=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match=r"expected nothing at .*mine, or the result of this .*; found something else"):
        export(cache_folder, tmp_path / "mine", codec="none", num_threads=1)
    with pytest.raises(StoreError, match="expected a folder outside the cache"):
        export(target, target / "inside", codec="none", num_threads=1)


def test_a_killed_export_goes_on_behind_what_it_had_committed(cache_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(cache_folder), str(target)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not target.exists()
    (scratch,) = tmp_path.glob(".exported.*-zstd.partial")
    kept = (scratch / "cache" / HOOKS[0] / "c/0/0").stat().st_ino
    export(cache_folder, target, codec="zstd", num_threads=1)
    assert (target / HOOKS[0] / "c/0/0").stat().st_ino == kept
    assert verify(target, full=True, num_threads=1) == []


def test_two_exports_to_one_place_and_exports_of_damage_are_refused(make_cache: MakeCache, tmp_path: Path) -> None:
    folder = make_cache()
    digest = load_manifest(folder).digest
    lease = acquire(tmp_path / f".exported.{digest[:16]}-none.partial")
    with pytest.raises(Busy, match=f"is being written by process {os.getpid()}"):
        export(folder, tmp_path / "exported", codec="none", num_threads=1)
    lease.release()
    path = folder / HOOKS[1] / "c/2/0"
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedFile, match=rf"expected checksum .* of {path}"):
        export(folder, tmp_path / "exported", codec="none", num_threads=1)
    assert not (tmp_path / "exported").exists()


def test_an_export_that_cannot_fit_is_refused_before_it_writes(
    cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.statvfs(tmp_path)
    nearly_full = os.statvfs_result((*status[:4], 2, *status[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _folder: nearly_full)
    with pytest.raises(StoreError, match=r"expected at least 0\.000 GB of free space below .* in the codec none, got"):
        export(cache_folder, tmp_path / "exported", codec="none", num_threads=1)
    assert not (tmp_path / "exported").exists()
