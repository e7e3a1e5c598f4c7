"""Other machines than this one, made here: a user who may write nowhere, a read-only copy of the code."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.imports import ROOT, packages

NOBODY = 65534


def as_nobody() -> list[str]:
    """What to put before a command so that it runs as a user who owns nothing; nothing if we are no root ourselves.

    It may read everything, because Python itself may lie in root's home, and write only where anybody may.
    """
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (util-linux) to become another user: root may write to read-only folders")
    sees_all = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    command = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", *sees_all]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let root become a user who may read everything (setpriv)")
    return command


@contextmanager
def folder_for_all() -> Iterator[Path]:
    """A folder for temporary files that other users reach: pytest's own is root's alone."""
    with tempfile.TemporaryDirectory(prefix="machine-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def copy_of_the_code(folder: Path) -> Path:
    """Our packages without compiled files, in a folder that nobody but its owner may write to, and not even he."""
    for name in [*packages(), *(path.name for path in ROOT.glob("*.py"))]:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder


def writable_again(folder: Path) -> None:
    """Lets the folder be removed by a user who is no root."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
