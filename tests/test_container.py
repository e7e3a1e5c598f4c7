"""The whole pipeline in a container: read-only code, a volume for each output, another user, few open files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.imports import ROOT
from tests.machine import NOBODY, as_nobody, copy_of_the_code, folder_for_all, writable_again
from tests.miniature import shrink, write_text

VOLUMES = ("data", "models", "results", "reports")
MOUNTS = f"""
set -e
mount --bind "$1" "$1"
mount -o remount,ro,bind "$1"
cd "$1"
shift
for name in {" ".join(VOLUMES)}; do
    mount -t tmpfs -o "mode=755,uid={NOBODY},gid={NOBODY},size=64m" none "$name"
done
mkdir models/lost+found
chmod 700 models/lost+found
umask 077
ulimit -n 256
exec "$@"
"""
"""A file system for each output, the code read-only; then the command, as who it says, with few open files."""


def in_container(study: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",  # Python would take UTF-8 for the locale C
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PIPELINE_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(
        ["unshare", "--mount", "bash", "-c", MOUNTS, "mounts", str(study), *as_nobody(), *command],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip


STAGES = """
set -e
run() { "$python" pipeline.py "$@"; }
python="$1"
for stage in language_model harvest train evaluate report; do
    echo "== $stage"
    run "$stage"
done
echo "== again"
run harvest
run train
echo "== store"
run store verify --full data/activations
run store sample data/activations -n 1 --params params.yaml
run store export data/activations data/exported --codec zstd
run export --output data/hub
"$python" -c "import zarr; print(zarr.open_array('data/activations/blocks.1.hook_resid_post')[:2].shape)"
ulimit -n 64
run store verify --full data/activations
echo "== files"
find data models results reports -mindepth 1 | sort
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_pipeline_runs_in_a_container(tiny_model_folder: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs to mount file systems of its own: root, and unshare --mount")
    with folder_for_all() as folder:
        study = folder / "study"
        study.mkdir()
        shutil.copytree(tiny_model_folder, study / "tiny")
        write_text(study)
        yaml = YAML()
        params = yaml.load(ROOT / "params.yaml")
        shrink(params)
        yaml.dump(params, study / "params.yaml")
        for name in VOLUMES:
            (study / name).mkdir()
        copy_of_the_code(study)
        try:
            done = in_container(study, "bash", "-c", STAGES, "stages", sys.executable)
        finally:
            writable_again(study)
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout
    files = done.stdout.split("== files\n")[1].splitlines()
    assert {"data/activations/manifest.json", "models/baseline/card.json", "results/core/baseline.json"} <= set(files)
    assert {"reports/report.html", "reports/report.md"} <= set(files)
    kept = ("data/.partial", "data/.evaluation")  # for the next run
    leftovers = [name for name in files if "/." in name and not name.startswith(kept)]
    assert not leftovers
    again = done.stdout.split("== again\n")[1].split("== store\n")[0]
    assert again.count("is unchanged and reused") == 5
    assert "(2, 32)" in done.stdout  # plain zarr, with the codec of the read-only code
    assert done.stdout.count("every byte is as written") == 2
