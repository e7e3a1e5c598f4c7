"""What is installed is whole: a wheel holds every package, sub-package and template, and its codec is found."""

import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.imports import ROOT, files_of, packages

PROGRAM = """
import importlib, json, sys
modules = json.loads(sys.argv[1])
for name in modules:
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.argv[2]), module.__file__
import numcodecs, zarr
assert numcodecs.get_codec({"id": "bf16_planes_v1"}).codec_id == "bf16_planes_v1"
from zarr.registry import get_codec_class
assert get_codec_class("bf16_planes_v1").__module__ == "store.codec.plugins"
from language_model.load import resolve
assert str(resolve("embedded", None)).startswith(sys.argv[2])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the files that git tracks and unpacked as an installation unpacks it; not editable."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in names:
        if name and (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_holds_every_file_of_every_package(installed: Path) -> None:
    expected = set(files_of(*packages()))
    expected |= {
        path.relative_to(ROOT)
        for folder in ("evaluate/report/templates", "language_model/embedded")
        for path in (ROOT / folder).iterdir()
    }
    found = {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()}
    assert expected <= found, sorted(map(str, expected - found))
    assert not [path for path in found if path.parts[0] in ("tests", "benchmarks")]


def test_an_installed_wheel_imports_and_its_codec_is_found(installed: Path, tmp_path: Path) -> None:
    modules = [".".join(path.with_suffix("").parts) for path in files_of("compute", "store", "train", "harvest")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(modules), str(installed)],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
