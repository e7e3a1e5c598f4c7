"""Errors of the machine are told apart from damage, wherever files are read: nothing is repaired or made again."""

import errno
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import store.files.local
from pipeline import main
from store.care.dvc_versions import files_in
from store.care.repair import repair
from store.care.verify import verify
from store.errors import MachineError, StoreError, Unreachable
from store.machine import explain
from store.sae.artefact import read_log
from tests.imports import ROOT
from tests.store.cache_fixture import HOOKS, make_writer, write_cache

MakeCache = Callable[..., Path]
SHARD = f"{HOOKS[0]}/c/2/0"  # of training alone: the held-out split has two
OF_THE_MACHINE = [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO, errno.ENOMEM, errno.ESTALE]


def fail_to_open(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """From now on, the machine does not let us have the file of that name."""
    kept = store.files.local._Descriptor.__init__

    def init(self: object, path: Path) -> None:
        if path.as_posix().endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        kept(self, path)  # type: ignore[arg-type]

    monkeypatch.setattr(store.files.local._Descriptor, "__init__", init)


@pytest.mark.parametrize("number", OF_THE_MACHINE)
def test_verify_says_that_a_file_could_not_be_read_and_not_that_it_is_damaged(
    number: int, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_cache()
    (folder / "tokens/c/0/0").write_bytes(b"short")
    fail_to_open(monkeypatch, SHARD, number)
    with pytest.raises(MachineError) as caught:
        verify(folder, full=True, num_threads=2)
    assert caught.value.errno == number
    first, last = str(caught.value).splitlines()
    assert first.startswith(f"could not read {folder / SHARD}: {os.strerror(number)}. ")
    assert f"1 of the files of {folder} could not be read on this machine now, which is no damage" in last
    assert last.endswith("Of those that could be read, 1 are not as they were written")
    assert main(["store", "verify", "--full", str(folder)]) == 1
    errors = capsys.readouterr().err
    assert "cannot be trusted" not in errors
    assert "Errno" not in errors


@pytest.mark.parametrize("number", OF_THE_MACHINE)
def test_a_repair_stops_and_touches_nothing(
    number: int, make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_cache()
    (folder / "tokens/c/0/0").write_bytes(b"short")
    before = {name: path.read_bytes() for name, path in files_in(folder).items()}
    fail_to_open(monkeypatch, SHARD, number)

    def harvest(*_arguments: object) -> None:
        raise AssertionError("harvested again")

    with pytest.raises(MachineError, match="which is no damage: nothing was judged or repaired"):
        repair(
            folder,
            output="",
            scratch=tmp_path / ".repair",
            harvest_again=harvest,
            accept_different_bytes=True,
            num_threads=1,
        )
    assert {name: path.read_bytes() for name, path in files_in(folder).items()} == before


def test_a_manifest_that_cannot_be_read_is_not_restored(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_cache()

    def denied(_path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(MachineError, match=r"could not read .*manifest\.json: Permission denied. Check who owns it"):
        repair(
            folder,
            output="",
            scratch=tmp_path / ".repair",
            harvest_again=None,
            accept_different_bytes=False,
            num_threads=1,
        )


def test_a_server_that_does_not_answer_has_no_damaged_files(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_arguments: object) -> None:
        raise Unreachable("expected an answer, got none")

    monkeypatch.setattr(store.files.local.LocalFiles, "open_range", silent)
    with pytest.raises(Unreachable):
        verify(make_cache(), full=True, num_threads=2)


@pytest.mark.parametrize("number", OF_THE_MACHINE)
def test_a_shard_that_cannot_be_read_is_not_harvested_again(
    number: int, make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = files_in(make_cache())
    for module, reader in (("growing", "file_sha256"), ("reuse", "read_record_file")):
        with monkeypatch.context() as patched, make_writer(tmp_path / reader) as writer:

            def fail(*_arguments: object) -> str:
                raise OSError(number, os.strerror(number), "/the/file")

            patched.setattr(f"store.write.{module}.{reader}", fail)
            with pytest.raises(MachineError, match=r"could not reuse a shard .*--no-reuse does without.*/the/file"):
                writer.reuse_shards(earlier)


def test_a_shard_whose_record_has_just_gone_is_only_missing(make_cache: MakeCache, tmp_path: Path) -> None:
    earlier = files_in(make_cache()) | {"shards/00000.json": tmp_path / "gone"}
    with make_writer(tmp_path / "new") as writer:
        adopted = writer.reuse_shards(earlier)
    assert ("training", 0) not in adopted
    assert len(adopted) == 5  # 41 sequences in shards of 12 are four, 14 held out are two


def test_a_log_that_cannot_be_read_is_no_bad_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="expected JSON lines"):
        read_log(tmp_path)

    def fail(*_arguments: object, **_others: object) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(OSError, match="Input/output error"):
        read_log(tmp_path)


def test_every_error_says_what_was_tried_why_it_failed_and_what_to_do() -> None:
    full = explain(OSError(errno.ENOSPC, "No space left on device"), "write /a")
    assert str(full) == "could not write /a: No space left on device. Free some space or choose another folder"
    assert full.errno == errno.ENOSPC
    assert explain(full, "write /b") is full
    named = explain(PermissionError(errno.EACCES, "Permission denied", "/a/b"), "list /a")
    assert str(named) == "could not list /a: Permission denied (/a/b). Check who owns it and its permissions"
    assert str(explain(OSError("odd"), "read /a")) == "could not read /a: odd. Check its permissions and its disk"


READ_ALL = """
import hashlib, resource, sys
soft = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from pipeline import main
from store.read.cache import ActivationCache
running = hashlib.sha256()
for mode in ("mmap", "pread"):
    cache = ActivationCache(sys.argv[1], mode=mode)
    hooks = cache.spec.hooks
    with cache.aligned_batches(hooks, batch_rows=64, seed=0, num_epochs=1, pool_bytes=200_000) as batches:
        for batch in batches:
            for rows in batch:
                running.update(rows.tobytes())
    running.update(cache.rows(hooks[0], range(cache.manifest.num_rows)).tobytes())
print(running.hexdigest())
for command in ("verify --full", "verify", "info", "repair --no-harvest", "sample -n 300"):
    name, *flags = command.split()
    assert main(["store", name, *flags, sys.argv[1]]) == 0
assert main(["store", "export", sys.argv[1], sys.argv[1] + "-zstd", "--codec", "zstd"]) == 0
"""


@pytest.mark.parametrize("limit", [256, 64])
def test_a_cache_of_many_shards_is_read_whole_with_few_open_files(limit: int) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder = Path(name) / "cache"
        one = {"sequences_per_chunk": 1, "chunks_per_shard": 1, "forward_batch_sequences": 1}
        write_cache(folder, num_sequences=323, **one)
        digests = []
        for number in (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
            done = subprocess.run(
                [sys.executable, "-c", READ_ALL, str(folder), str(number)],
                cwd=ROOT, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            digests.append(done.stdout.splitlines()[0])
        assert digests[0] == digests[1]
