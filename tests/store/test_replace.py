"""A folder takes the place of another: across file systems, through links, on mount points, and under kills."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from store import replace
from store.errors import IncompleteCache, MachineError, StoreError
from store.replace import assembly_folder, check_settled, check_target, check_writable, is_vacant, replace_folder
from tests.faults.replace_faults import KINDS
from tests.imports import ROOT
from tests.machine import as_nobody, folder_for_all

OTHER = Path("/dev/shm")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    if not OTHER.is_dir() or OTHER.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=OTHER) as name:
        yield Path(name)


def folder_with(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / text).write_text(text)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for name in ("old", "new", ".old.12345678.old"):  # the last one was left by a swap of an earlier version
        folder_with(tmp_path / name, name)
    folder_with(tmp_path / ".old.two.old", "another's")
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert names(tmp_path) == [".old.two.old", ".old.two.old/another's", "old", "old/new"]


def test_a_folder_of_another_file_system_is_copied(tmp_path: Path, elsewhere: Path) -> None:
    folder_with(elsewhere / "new", "new")
    folder_with(elsewhere / "new" / "deep" / "er", "file")
    for _ in range(2):
        replace_folder(elsewhere / "new", tmp_path / "out")
        assert names(tmp_path) == ["out", "out/deep", "out/deep/er", "out/deep/er/file", "out/new"]
        assert names(elsewhere) == []
        folder_with(elsewhere / "new", "new")
        folder_with(elsewhere / "new" / "deep" / "er", "file")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_larger_disk_stays_one(tmp_path: Path, elsewhere: Path, there: bool) -> None:
    if there:
        folder_with(elsewhere / "big", "old")
    (tmp_path / "out").symlink_to(elsewhere / "big")
    folder_with(tmp_path / "new", "new")
    replace_folder(tmp_path / "new", tmp_path / "out")
    assert (tmp_path / "out").readlink() == elsewhere / "big"
    assert names(elsewhere) == ["big", "big/new"]
    assert names(tmp_path) == ["out"]


def test_what_cannot_be_renamed_is_replaced_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mount: the rename of the target fails as it does for one."""
    target = folder_with(tmp_path / "out", "old")
    (target / "manifest.json").write_text("old")
    (target / "lost+found").mkdir()
    folder_with(tmp_path / "new", "new")
    (tmp_path / "new" / "manifest.json").write_text("new")
    rename = Path.rename

    def busy(self: Path, to: Path) -> Path:
        if self == target:
            raise OSError(16, "Device or resource busy", str(self))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", busy)
    inode = target.stat().st_ino
    replace_folder(tmp_path / "new", target)
    assert names(tmp_path) == ["out", "out/lost+found", "out/manifest.json", "out/new"]
    assert (target / "manifest.json").read_text() == "new"
    assert target.stat().st_ino == inode


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_step_leaves_old_or_new_or_what_the_next_run_repairs(kind: str, tmp_path: Path) -> None:
    """The program kills every step of a replacement, and of some repairs, and fails where half a folder seems whole."""
    command = [sys.executable, "-m", "tests.faults.replace_faults"]
    mounts = kind in ("volume", "bind", "image")
    if mounts and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs to mount file systems of its own: unshare --mount")
    if kind != "same" and not OTHER.is_dir():
        pytest.skip("needs a second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=OTHER if mounts else tmp_path) as folder:  # in memory, where syncs are quick
        done = subprocess.run(
            [*(["unshare", "--mount"] if mounts else []), *command, folder, kind, "20"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if mounts and "CalledProcessError: Command '['mount'" in done.stderr:
        pytest.skip(f"this machine has no such mount: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert "'old'" in done.stdout
    assert "'new'" in done.stdout
    assert ("'refused after a second kill'" in done.stdout) == mounts


@pytest.mark.parametrize("state", ["ready", "incoming"])
def test_readers_are_told_of_a_folder_that_holds_some_of_its_files(tmp_path: Path, state: str) -> None:
    target = folder_with(tmp_path / "out", "half")
    check_settled(target)
    folder_with(target / ".partial" / state, "rest")
    with pytest.raises(IncompleteCache, match=r"expected all files of .*out, found some of them.*Run the stage"):
        check_settled(target)
    check_target(target, tmp_path)
    check_settled(target)
    assert names(target) == (["rest"] if state == "ready" else ["half", "rest"])


def test_a_file_in_the_place_of_a_folder_is_refused_before_and_after(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    folder_with(tmp_path / "new", "new")
    for refused in (
        lambda: check_target(tmp_path / "out", tmp_path),
        lambda: check_writable(tmp_path / "out"),
        lambda: replace_folder(tmp_path / "new", tmp_path / "out"),
    ):
        with pytest.raises(StoreError, match=r"expected a folder at .*out, to be replaced, found a file"):
            refused()
    assert (tmp_path / "out").read_text() == "mine"
    assert names(tmp_path / "new") == ["new"]


def test_room_for_a_copy_is_asked_for_before_work_begins(tmp_path: Path, elsewhere: Path) -> None:
    check_target(tmp_path / "out", tmp_path, nbytes=2**60)  # a rename needs none
    with pytest.raises(StoreError, match=r"expected 1152921504\.607 GB of free space in .*, got"):
        check_target(tmp_path / "out", elsewhere, nbytes=2**60)
    check_target(tmp_path / "out", elsewhere, nbytes=1)
    assert not [name for name in names(tmp_path) + names(elsewhere) if "probe" in name]


def test_a_place_that_cannot_be_written_is_named_before_work_begins() -> None:
    program = "import sys, store.replace, pathlib\nstore.replace.check_writable(pathlib.Path(sys.argv[1]))"
    with folder_for_all() as folder:
        (folder / "out").mkdir(mode=0o555)
        for target in (folder / "out", folder / "gone" / "deeper"):
            folder.chmod(0o555)
            done = subprocess.run(
                [*as_nobody(), sys.executable, "-B", "-c", program, str(target)],
                cwd=ROOT, capture_output=True, text=True, check=False,
            )  # fmt: skip
            folder.chmod(0o755)
            message = f"MachineError: could not write to {target}: Permission denied"
            assert message in done.stderr
            assert "Check who owns it and its permissions" in done.stderr


def test_large_folders_are_assembled_on_the_disk_that_they_end_on(tmp_path: Path, elsewhere: Path) -> None:
    usual = tmp_path / ".partial" / "harvest"
    assert assembly_folder(tmp_path / "out", usual) == usual
    assert assembly_folder(elsewhere / "out", usual) == elsewhere / ".out.partial"
    (tmp_path / "out").symlink_to(elsewhere / "big")
    assert assembly_folder(tmp_path / "out", usual) == elsewhere / ".big.partial"


def test_a_mount_point_is_no_place_beside_which_anything_could_wait(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder_with(elsewhere / "out", "old")
    monkeypatch.setattr("store.replace._is_mount", lambda folder: folder == target)
    assert assembly_folder(target, tmp_path / "usual") == target / ".partial"


def test_a_copy_that_fails_leaves_the_old_folder_and_no_litter(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_with(tmp_path / "out", "old")
    folder_with(elsewhere / "new", "new")

    def full(*_arguments: object, **_others: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(MachineError, match=r"could not put .*new in the place of .*out: No space left on device. Free"):
        replace_folder(elsewhere / "new", tmp_path / "out")
    assert names(tmp_path) == ["out", "out/old"]
    assert names(elsewhere) == ["new", "new/new"]


def test_a_volume_with_nothing_but_its_own_is_vacant(tmp_path: Path) -> None:
    assert is_vacant(tmp_path / "none")
    (tmp_path / "lost+found").mkdir()
    assert is_vacant(tmp_path)
    (tmp_path / "file").write_text("")
    assert not is_vacant(tmp_path)
    assert not is_vacant(tmp_path / "file")
    assert os.listdir(tmp_path)


def test_a_folder_that_cannot_be_listed_is_not_copied_as_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source" / "inner").mkdir(parents=True)
    (tmp_path / "source" / "inner" / "a").write_text("x")
    scandir = os.scandir

    def failing(path: object = ".") -> object:
        if str(path).endswith("source/inner"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(OSError, match="Input/output error"):
        replace._copied(tmp_path / "source", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_an_old_folder_whose_removal_was_interrupted_is_never_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("new", "models"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *arguments, **keywords: None)  # as if killed at each of them
        replace.replace_folder(tmp_path / "new", tmp_path / "models")
    shutil.rmtree(tmp_path / "models")
    replace.check_target(tmp_path / "models", tmp_path)
    assert not (tmp_path / "models").exists()
    assert [path.name for path in tmp_path.iterdir() if "removed" in path.name] == []
