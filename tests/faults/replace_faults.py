"""Kills a process at every step of a folder's replacement, and looks at what readers and the next run find.

    python -m tests.faults.replace_faults FOLDER same|across|link|volume|bind|image [EVERY]

After every EVERY-th kill that leaves no whole folder (1), the next run is killed at each of its steps, too.

`volume`, `bind` and `image` mount something on the folder that is replaced; run them under `unshare --mount`, which
undoes it. A step is an operation of the operating system that Python tells its audit hooks of: a rename, a removal, an
opened file, a new folder.
"""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from store.errors import IncompleteCache
from store.replace import check_settled, check_target, replace_folder

KINDS = ("same", "across", "link", "volume", "bind", "image")
OLD = {"manifest.json": "old", "zarr.json": "old", "rows/c/0": "old", "rows/c/1": "old"}
NEW = {"manifest.json": "new", "zarr.json": "new", "rows/c/0": "new", "tokens/0": "new"}
KILLED = 77


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and ".partial" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


class Place:
    """A folder to be replaced, and one to replace it with."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.folder = folder
        self.target = folder / "data" / "out"
        self.scratch = folder / "scratch"
        if kind == "across":
            self.scratch = Path(tempfile.mkdtemp(dir="/dev/shm"))
        elif kind == "link":
            self.big = Path(tempfile.mkdtemp(dir="/dev/shm")) / "big"
        elif kind in ("volume", "bind"):
            self.target.mkdir(parents=True)
            (folder / "other").mkdir()
            tmpfs = ["-t", "tmpfs", "none", str(self.target)]
            mount(*(tmpfs if kind == "volume" else ["--bind", str(folder / "other"), str(self.target)]))
            (self.target / "lost+found").mkdir()

    def reset(self) -> None:
        """The old folder in place, the new one in scratch, and nothing else."""
        if self.kind == "image":
            self._new_container()
        elif self.kind in ("volume", "bind"):
            for path in self.target.iterdir():
                if path.name != "lost+found":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            shutil.rmtree(self.target.parent, ignore_errors=True)
            self.target.parent.mkdir()
            if self.kind == "link":
                shutil.rmtree(self.big.parent)
                self.big.mkdir(parents=True)
                self.target.symlink_to(self.big)
        if self.kind != "image":
            write(self.target, OLD)
        self.renew_source()

    def _new_container(self) -> None:
        """The target's parent as overlayfs shows it: the old folder belongs to the image below."""
        names = ("image", "changes", "work")
        subprocess.run(["umount", str(self.target.parent)], capture_output=True, check=False)
        for name in names:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir()
        write(self.folder / "image" / "out", OLD)
        self.target.parent.mkdir(exist_ok=True)
        lower, upper, work = (self.folder / name for name in names)
        layers = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=off"
        mount("-t", "overlay", "none", "-o", layers, str(self.target.parent))

    def renew_source(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)
        write(self.scratch / "new", NEW)

    def replace(self) -> None:
        replace_folder(self.scratch / "new", self.target)

    def next_run(self) -> None:
        """What a stage does when it is run again: it repairs, makes the new folder again if need be, and replaces."""
        check_target(self.target, self.folder)
        if read(self.target) not in (OLD, NEW):
            raise AssertionError(f"repaired to {read(self.target)}")
        self.renew_source()
        self.replace()

    def state(self) -> str:
        """What a reader finds."""
        try:
            check_settled(self.target)
        except IncompleteCache:
            if read(self.target).get("manifest.json") == "old" and read(self.target) != OLD:
                raise AssertionError(f"an old manifest beside {read(self.target)}") from None
            return "refused"
        if not self.target.exists():
            return "absent"
        found = read(self.target)
        if found not in (OLD, NEW):
            raise AssertionError(f"half of a folder is taken for whole: {found}")
        return found["manifest.json"]

    def check_end(self) -> None:
        """The new folder, no leftovers, and a link that is still one."""
        real = Path(os.path.realpath(self.target))
        kept = {"lost+found"} if self.kind in ("volume", "bind") else set()
        beside = {path.name for path in real.parent.iterdir() if not path.name.startswith(".probe-")} - {real.name}
        inside = {path.name for path in real.iterdir()} - {name.split("/")[0] for name in NEW}
        if self.state() != "new" or beside or inside != kept or self.target.is_symlink() != (self.kind == "link"):
            raise AssertionError(f"ended as {self.state()} with {beside} beside and {inside} inside")


def kill_at(step: int, action: Callable[[], None]) -> bool:
    """Does the action in a process of its own and kills that before a step; whether it got so far."""
    child = os.fork()
    if child == 0:
        left = itertools.count(step, -1)

        def count(event: str, _arguments: tuple[Any, ...]) -> None:
            if event.split(".")[0] in ("os", "open", "shutil", "tempfile") and next(left) == 0:
                os._exit(KILLED)

        sys.addaudithook(count)
        try:
            action()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, KILLED):
        raise AssertionError(f"killed before step {step}, but it ended with {code}")
    return code == KILLED


def trial(folder: Path, kind: str, *, every: int = 1) -> Counter[str]:
    """Kills the replacement at each of its steps, and the run after it at each of its own; how often it was what."""
    place = Place(folder, kind)
    seen: Counter[str] = Counter()
    for step in itertools.count():
        place.reset()
        if not kill_at(step, place.replace):
            place.check_end()
            return seen
        state = place.state()
        seen[state] += 1
        place.next_run()
        place.check_end()
        broken = seen["refused"] + seen["absent"]
        for again in itertools.count() if state in ("refused", "absent") and broken % every == 0 else ():
            place.reset()
            kill_at(step, place.replace)
            killed = kill_at(again, place.next_run)
            seen[f"{place.state()} after a second kill"] += 1
            place.next_run()
            place.check_end()
            if not killed:
                break
    raise AssertionError("unreachable")


if __name__ == "__main__":
    print(dict(trial(Path(sys.argv[1]), sys.argv[2], every=int([*sys.argv, "1"][3]))))
