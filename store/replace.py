"""A folder put in the place of another, on one file system or across two, and where the place is itself a volume.

What is replaced is the folder that a path leads to: a link to a larger disk stays a link. `<name>` is that folder's.

* **By renames**, where the folder can be renamed. A new folder of another file system is copied to `.<name>.new` first.
  Then the old folder becomes `.<name>.old`, the new one takes its name, and the old one is removed under a third
  name. A process that is
  killed between the two renames leaves no folder; the next run renames the old one back.
* **Inside**, where the folder cannot be renamed: it is a mount point (EBUSY), its parent may not be written to, or it
  belongs to the image of a container (overlayfs says EXDEV). The new files are made or copied to
  `<name>/.partial/copying`, which is renamed to `.partial/ready` once they are durable: from then on the replacement
  goes forward only. The old files are removed, the manifest first; `ready` is renamed to `incoming`; the new files are
  moved up, the manifest last. A process that is killed meanwhile leaves some of the files, with `ready` or `incoming`
  beside them: `check_settled` refuses such a folder to readers, and the next run finishes it. Old and new files are
  never there together.

One process at a time may replace a folder; its stage's lease sees to that.
"""

import contextlib
import errno
import glob
import os
import re
import shutil
import tempfile
import uuid
from pathlib import Path

from store.atomic import sync_file, sync_folder
from store.cache.paths import MANIFEST_FILE
from store.errors import IncompleteCache, StoreError
from store.machine import explained

PARTIAL = ".partial"
NOT_OURS = ("lost+found",)
"""What a file system keeps at its root."""
_CANNOT_BE_RENAMED = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM, errno.EROFS)


def replace_folder(source: Path, target: Path) -> None:
    """Puts the folder `source` in the place of the folder that `target` leads to, which is removed.

    A process that is killed leaves the old folder, or the new one, or what the next call repairs.

    Raises:
        StoreError: the target is a file.
        OSError: the machine does not let us; the old folder is as it was, or `check_settled` says that it is not.
    """
    target = _real(target)
    with explained(f"put {source} in the place of {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        _repair(target)
        try:
            done = _rename(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            done = _rename(_copied(source, target.with_name(f".{target.name}.new")), target)
        if not done:
            _move_in(source, target)
        shutil.rmtree(source, ignore_errors=True)  # where it was copied
        _repair(target)


def assembly_folder(target: Path, usual: Path) -> Path:
    """A folder to assemble what will replace `target`, on the same file system: `usual` if it is on that, else beside
    the target, or inside it where the target is a volume. Whoever works there holds its lease and removes it.
    """
    target = _real(target)
    with explained(f"prepare a place for {target}"):
        usual.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = _staging(target)
        if _can_rename(usual, beside):
            return usual
        return target / PARTIAL if beside == target else beside / f".{target.name}{PARTIAL}"


def check_target(target: Path, scratch: Path, *, nbytes: int = 0) -> None:
    """Finishes what a killed process left of `target`, and refuses it unless `replace_folder` can replace it later.

    Args:
        target: to be replaced; the caller holds the lease of whoever replaces it.
        scratch: where the new folder will be.
        nbytes: of the new folder, for the case that it has to be copied.
    """
    check_writable(target)
    target = _real(target)
    with explained(f"prepare a place for {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        _repair(target)
        beside = _staging(target)
        free = shutil.disk_usage(beside).free
        if free < nbytes and not _can_rename(scratch, beside):
            raise StoreError(
                f"expected {nbytes / 1e9:.3f} GB of free space in {beside}, where the new {target} has to be copied to "
                f"from {scratch}, got {free / 1e9:.3f} GB. Free some, or put both on one file system"
            )


def check_writable(target: Path) -> None:
    """Refuses a target that this process cannot replace, before any work is done for it."""
    target = _real(target)
    with explained(f"write to {target}"):
        _probe(next(folder for folder in (target, *target.parents) if folder.is_dir())).cleanup()


def is_vacant(folder: Path) -> bool:
    """Whether nothing is there, or an empty folder but for what file systems and this module keep in one."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(path.name in (PARTIAL, *NOT_OURS) for path in folder.iterdir())


def check_settled(folder: Path) -> None:
    """Refuses a folder whose replacement was interrupted: it holds some of its files only."""
    if any((folder / PARTIAL / state).is_dir() for state in ("ready", "incoming")):
        raise IncompleteCache(
            f"expected all files of {folder}, found some of them: the process that was replacing the folder was killed "
            "or is still at it. Run the stage that makes it again; it finishes this first"
        )


def _real(target: Path) -> Path:
    real = Path(os.path.realpath(target))
    if real.exists() and not real.is_dir():
        raise StoreError(f"expected a folder at {target}, to be replaced, found a file. Move it away")
    return real


def _staging(target: Path) -> Path:
    """Where a new folder waits, on the file system of the target: its parent, or itself where it cannot be renamed."""
    if target.is_dir() and (_is_mount(target) or not _is_writable(target.parent)):
        return target
    return target.parent


def _is_mount(folder: Path) -> bool:
    """Also of a folder of the same file system that is mounted here once more, which `os.path.ismount` cannot tell."""
    if os.path.ismount(folder):
        return True
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:  # not Linux; then the rename fails, and the folder is replaced inside
        return False
    spelled = os.fsencode(folder)
    for sign in (b"\\", b" ", b"\t", b"\n"):
        spelled = spelled.replace(sign, b"\\%03o" % ord(sign))
    return any(line.split(b" ")[4] == spelled for line in mounts)


def _probe(folder: Path) -> "tempfile.TemporaryDirectory[str]":
    """A folder made in another, which shows that one can be."""
    return tempfile.TemporaryDirectory(dir=folder, prefix=".probe-")


def _is_writable(folder: Path) -> bool:
    try:
        _probe(folder).cleanup()
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return False
        raise
    return True


def _can_rename(folder: Path, other: Path) -> bool:
    """Whether what is made in `folder` can be renamed into `other`; tried, because mounts of one device may differ."""
    with _probe(folder) as name:
        probe = Path(name) / "probe"
        probe.mkdir()
        moved = other / f"{Path(name).name}-moved"
        try:
            probe.rename(moved)
        except OSError as error:
            if error.errno == errno.EXDEV:
                return False
            raise
        moved.rmdir()
    return True


def _rename(source: Path, target: Path) -> bool:
    """Replaces the target by two renames. False, and nothing has changed, where the target cannot be renamed."""
    old = target.with_name(f".{target.name}.old")
    had_one = target.exists()
    if had_one:
        try:
            target.rename(old)
        except OSError as error:
            if error.errno in _CANNOT_BE_RENAMED:
                return False
            raise
    try:
        source.rename(target)
    except OSError:
        if had_one:
            old.rename(target)
        raise
    sync_folder(target.parent)
    return True


def _move_in(source: Path, target: Path) -> None:
    """Replaces the files of a target that cannot be renamed itself."""
    partial = target / PARTIAL
    partial.mkdir(exist_ok=True)
    try:
        source.rename(partial / "ready")
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copied(source, partial / "copying").rename(partial / "ready")
    sync_folder(partial)
    _finish(target)


def _finish(target: Path) -> None:
    """Goes on with what `_move_in` has begun, from wherever it was interrupted."""
    ready, incoming = (target / PARTIAL / state for state in ("ready", "incoming"))
    if ready.is_dir():
        (target / MANIFEST_FILE).unlink(missing_ok=True)
        sync_folder(target)
        for path in list(target.iterdir()):
            if path.name in (PARTIAL, *NOT_OURS):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        sync_folder(target)
        ready.rename(incoming)
        sync_folder(target / PARTIAL)
    if incoming.is_dir():
        for path in sorted(incoming.iterdir(), key=lambda path: path.name == MANIFEST_FILE):
            if path.name == MANIFEST_FILE:
                sync_folder(target)
            path.rename(target / path.name)
        sync_folder(target)
        incoming.rmdir()


def _copied(source: Path, copy: Path) -> Path:
    """A durable copy of a folder of files; what is left of an earlier attempt is removed."""
    shutil.rmtree(copy, ignore_errors=True)
    try:
        for folder, _, names in os.walk(source, onerror=_raise):
            made = copy / Path(folder).relative_to(source)
            made.mkdir()
            for name in names:
                shutil.copyfile(Path(folder, name), made / name)
                sync_file(made / name)
        for folder, _, _ in os.walk(copy, onerror=_raise):
            sync_folder(Path(folder))
    except OSError:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    return copy


def _raise(error: OSError) -> None:
    """A folder that cannot be listed is no empty folder."""
    raise error


def _discard(old: Path) -> None:
    """Removes a replaced folder under a name that is never taken for it again, whenever the removal is interrupted.

    What cannot be removed (a file that is open on a network file system) stays under that name and is in nobody's way.
    """
    removed = old.with_name(f"{old.name}.removed-{uuid.uuid4().hex[:8]}")
    old.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _repair(target: Path) -> None:
    """Finishes, or takes back, what a killed process left, and removes its leftovers."""
    leftover = re.compile(rf"\.{re.escape(target.name)}(\.[0-9a-f]{{8}})?\.old")  # versions before had a random part
    for old in [path for path in target.parent.iterdir() if leftover.fullmatch(path.name)]:
        if target.exists():
            _discard(old)
        else:
            old.rename(target)
    for removed in target.parent.glob(f".{glob.escape(target.name)}.*removed-*"):
        shutil.rmtree(removed, ignore_errors=True)
    shutil.rmtree(target.with_name(f".{target.name}.new"), ignore_errors=True)
    if target.is_dir():
        _finish(target)
        shutil.rmtree(target / PARTIAL / "copying", ignore_errors=True)
        with contextlib.suppress(OSError):  # none, or it is somebody's assembly
            (target / PARTIAL).rmdir()
