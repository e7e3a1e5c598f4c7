"""Files in a folder: sizes, ranges, and what is said when they are not as they should be."""

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from store.errors import DamagedFile, IncompleteCache, MachineError, StoreError
from store.files.local import LocalFiles, Mode, max_open
from store.files.open import open_files


@pytest.fixture(params=["mmap", "pread"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> LocalFiles:
    mode: Mode = request.param
    (tmp_path / "hook" / "c").mkdir(parents=True)
    (tmp_path / "hook" / "c" / "0").write_bytes(bytes(range(100)))
    (tmp_path / "empty").write_bytes(b"")
    return LocalFiles(tmp_path, mode=mode)


def test_ranges_are_the_bytes_that_lie_there(files: LocalFiles) -> None:
    reader = files.open_range("hook/c/0", 100)
    assert reader.read(10, 5).tolist() == [10, 11, 12, 13, 14]
    assert reader.read(95, 5).tolist() == [95, 96, 97, 98, 99]
    assert reader.read(100, 0).tolist() == []
    assert files.open_range("empty", 0).read(0, 0).tolist() == []


def test_sizes_of_one_file_of_all_and_of_none(files: LocalFiles) -> None:
    assert files.size("hook/c/0") == 100
    assert files.size("hook/c/1") is None
    assert files.sizes() == {"hook/c/0": 100, "empty": 0}
    assert files.read("hook/c/0") == bytes(range(100))
    assert not files.forget("hook/c/0", 0)


def test_a_missing_file_is_named(files: LocalFiles) -> None:
    for read in (lambda: files.read("hook/c/1"), lambda: files.open_range("hook/c/1", 100)):
        with pytest.raises(IncompleteCache, match=r"expected the file .*hook/c/1, found none"):
            read()


def test_a_file_of_another_size_is_refused_on_opening(files: LocalFiles) -> None:
    with pytest.raises(DamagedFile, match=r"expected .*hook/c/0 to have 101 bytes, got 100"):
        files.open_range("hook/c/0", 101)


def test_a_range_outside_its_file_is_refused(files: LocalFiles) -> None:
    reader = files.open_range("hook/c/0", 100)
    for offset, nbytes in ((99, 2), (-1, 1), (2**64 - 1, 1), (0, -1)):
        with pytest.raises(DamagedFile, match=r"inside .*hook/c/0, which has 100"):
            reader.read(offset, nbytes)


def test_a_file_cut_short_after_opening_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    path.write_bytes(bytes(10_000))
    reader = LocalFiles(tmp_path, mode="pread").open_range("shard", 10_000)
    reader.read(0, 10)
    with path.open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(DamagedFile, match=r"expected 1000 bytes at 4000 of .*shard, got 96: the file was cut short"):
        reader.read(4000, 1000)
    mapped = LocalFiles(tmp_path, mode="mmap")
    reader = mapped.open_range("shard", 4096)
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DamagedFile, match=r"expected .*shard to have 4096 bytes, got 100: it was cut short"):
        reader.read(0, 10)


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """Sets the number of files that this process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda number: resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("allowed", "held"), [(1024, 256), (256, 64), (3, 1), (2**20, 4096)])
def test_a_quarter_of_the_files_that_may_be_open_are_held(
    allowed: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _what: (allowed, allowed))
    assert max_open() == held
    monkeypatch.setattr("resource.getrlimit", lambda _what: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert max_open() == 4096


@pytest.mark.parametrize("mode", ["mmap", "pread"])
def test_more_files_than_may_be_open_can_be_read(mode: Mode, tmp_path: Path, limit: Callable[[int], None]) -> None:
    for number in range(300):
        (tmp_path / str(number)).write_bytes(number.to_bytes(8, "little"))
    limit(256)
    files = LocalFiles(tmp_path, mode=mode)
    readers = [files.open_range(str(number), 8) for number in range(300)]
    assert [int(reader.read(0, 8).view(np.uint64)[0]) for reader in readers] == list(range(300))
    assert len(files._open) == 64


@pytest.mark.parametrize("mode", ["mmap", "pread"])
def test_files_that_any_folder_holds_are_closed_when_there_are_too_many(
    mode: Mode, tmp_path: Path, limit: Callable[[int], None]
) -> None:
    for number in range(40):
        (tmp_path / str(number)).write_bytes(bytes([number]))
    first, second = LocalFiles(tmp_path, mode=mode), LocalFiles(tmp_path, mode=mode)
    for number in range(20):
        first.open_range(str(number), 1).read(0, 1)
    limit(len(os.listdir("/proc/self/fd")) + 5)  # of which a listing takes one
    for number in range(40):
        assert second.open_range(str(number), 1).read(0, 1).tolist() == [number]
    assert second.read("39") == bytes([39])
    assert not first._open


def test_where_not_even_one_file_can_be_opened_the_limit_is_named_and_no_file_is_blamed(
    tmp_path: Path, limit: Callable[[int], None]
) -> None:
    (tmp_path / "file").write_bytes(b"a")
    files = LocalFiles(tmp_path)
    limit(3)
    with pytest.raises(MachineError, match=r"could not read .*/file: Too many open files. Raise the limit .*ulimit -n"):
        files.read("file")


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_an_empty_one(
    files: LocalFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def denied(path: str) -> object:
        if str(path).endswith("hook"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", denied)
    with pytest.raises(MachineError, match=r"could not list .*hook: Permission denied"):
        files.sizes()


def test_what_a_file_system_keeps_at_its_root_is_no_file_of_a_cache(files: LocalFiles) -> None:
    for name in ("lost+found", ".partial", "hook/lost+found"):
        (files.folder / name).mkdir()
        (files.folder / name / "file").write_bytes(b"")
    assert files.sizes() == {"hook/c/0": 100, "empty": 0, "hook/lost+found/file": 0}


def test_names_that_lead_out_of_the_cache_are_refused(files: LocalFiles) -> None:
    for name in ("../secret", "/etc/passwd", "hook/../../secret", "", "a\\b"):
        with pytest.raises(StoreError, match="expected the name of a file inside the cache"):
            files.read(name)


def test_a_url_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    assert isinstance(open_files(tmp_path), LocalFiles)
    assert isinstance(open_files(str(tmp_path)), LocalFiles)
    assert open_files("memory://somewhere").location == "memory://somewhere"
