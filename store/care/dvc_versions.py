"""Pieces of earlier outputs that are still on this machine, found through DVC.

A stage that makes many independent pieces looks here for those that still fit before it computes any. DVC removes an
output before its stage runs, but its cache keeps the files: dvc.lock still describes the previous run while a stage
runs, and the run-cache describes older ones. Without DVC, or where its records cannot be read, no pieces are found.
"""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from store.files.listing import files_below


def earlier_outputs(output: str) -> Iterator[dict[str, Path]]:
    """Yields versions of a folder that is a DVC output, newest first, each as {relative path: file to read}.

    Args:
        output: the folder as dvc.yaml spells it, such as "models".

    The files are read-only and may belong to DVC's cache: check what they hold, then take them with
    `store.atomic.link_or_copy`; never write to them.
    """
    present = files_in(Path(output))
    if present:
        yield present
    cache = _cache_folder()
    if cache is None:
        return
    seen = set()
    for md5 in _recorded_versions(output, cache):
        if md5 not in seen:
            seen.add(md5)
            files = _version_files(cache, md5)
            if files:
                yield files


def files_in(folder: Path) -> dict[str, Path]:
    """The files below a folder by relative path; none where there is no such folder."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(files_below(folder))}


def _cache_folder() -> Path | None:
    """DVC's cache folder, which holds files/md5 and runs."""
    if not Path(".dvc").is_dir():
        return None
    try:
        found = subprocess.run(
            [sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, timeout=60, check=True
        )
    except subprocess.SubprocessError:
        return None
    folder = Path(found.stdout.strip())
    return folder if folder.is_dir() else None


def _recorded_versions(output: str, cache: Path) -> Iterator[str]:
    """Directory digests of `output`, from its .dvc file or dvc.lock, then from the run-cache, newest first."""
    yield from _digests(_load_yaml(Path(f"{output}.dvc")), Path(output).name)
    lock = _load_yaml(Path("dvc.lock"))
    stages = lock.get("stages")
    for stage in stages.values() if isinstance(stages, dict) else ():
        yield from _digests(stage, output)
    runs = [path for path in (cache / "runs").glob("*/*/*") if path.is_file()]
    for path in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True):
        yield from _digests(_load_yaml(path), output)


def _digests(stage: object, output: str) -> Iterator[str]:
    outs = stage.get("outs") if isinstance(stage, dict) else None
    for out in outs if isinstance(outs, list) else ():
        if isinstance(out, dict) and out.get("path") == output and str(out.get("md5", "")).endswith(".dir"):
            yield str(out["md5"])


def _version_files(cache: Path, md5: str) -> dict[str, Path]:
    """The files of a directory version that are in the cache; a partly fetched version gives those it has."""
    try:
        entries = json.loads((cache / "files" / "md5" / md5[:2] / md5[2:]).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    files = {}
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict):
            continue
        name, content = str(entry.get("relpath")), str(entry.get("md5"))
        path = cache / "files" / "md5" / content[:2] / content[2:]
        if path.is_file():
            files[name] = path
    return files


def _load_yaml(path: Path) -> dict[str, object]:
    try:
        loaded = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, YAMLError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


_OF_THIS_MACHINE = (
    errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.ESTALE, errno.EROFS,
)  # fmt: skip
"""What copying a file fails with here, and not at a remote."""

FetchFile = Callable[[str, Path], bool]
"""Copies the remote's version of a file of an output, by relative path, to a place; False where there is none."""


@contextlib.contextmanager
def remote_files(output: str) -> Iterator[FetchFile]:
    """Gives a function that fetches single files of a DVC output from its remote and from nowhere else.

    Args:
        output: the folder as dvc.yaml or a .dvc file spells it, relative to the repository's root.

    DVC looks into the workspace and into its cache before it asks the remote, and trusts both. So it is asked from an
    empty copy of the repository: the files that say what is tracked, no data, and a cache of its own.
    """
    if not Path(".dvc").is_dir():
        yield lambda _name, _target: False
        return
    # Slow to import, and of no use but here.
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_data.index import DataIndexDirError

    with tempfile.TemporaryDirectory(prefix="tracked-") as name:
        root = Path(name)
        (root / ".dvc").mkdir()
        (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
        tracking = [Path(name) for name in ("dvc.yaml", "dvc.lock", "params.yaml", ".dvcignore")]
        tracking += [*Path().glob("*.dvc"), *Path(output).parent.glob("*.dvc")]
        for path in tracking:
            if path.is_file():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, root / path)
        try:
            with Repo(".") as repo:
                remotes, default = dict(repo.config["remote"]), repo.config["core"].get("remote")
            settings = {"remote": remotes, "core": {"remote": default}, "cache": {"dir": str(root / "cache")}}
            tracked = DVCFileSystem(str(root), config=settings)
        except DvcException:
            yield lambda _name, _target: False
            return

        def fetch(name: str, target: Path) -> bool:
            try:
                with tracked.open(f"{output}/{name}", "rb") as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, length=4 * 2**20)
                    file.flush()
                    os.fsync(file.fileno())
            except (DvcException, DataIndexDirError, OSError) as error:
                if isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE:
                    raise
                if not isinstance(error, FileNotFoundError):
                    print(f"found no {output}/{name} in DVC's remote: {error}", file=sys.stderr)
                return False
            return True

        yield fetch
