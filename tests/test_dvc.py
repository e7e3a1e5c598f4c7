"""What depends on what, with the real DVC on a miniature: the whole pipeline, then one change after another."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from evaluate.benchmarks.registry import BENCHMARKS
from tests.miniature import shrink, write_text

ROOT = Path(__file__).parent.parent


class Study:
    """A clone of this repository with a miniature model and text, and its own DVC and git settings."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n"):
            if name and (ROOT / name).is_file() and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        shutil.copytree(model, folder / "tiny")
        write_text(folder)
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_GLOBAL_CONFIG_DIR": str(folder.parent / "dvc-global"),
            "DVC_SYSTEM_CONFIG_DIR": str(folder.parent / "dvc-system"),
            "DVC_SITE_CACHE_DIR": str(folder.parent / "dvc-site"),
            "DVC_NO_ANALYTICS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "PYTHONPATH": str(folder),
            "PIPELINE_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.edit(shrink)
        self.keep_benchmarks("core", "geometry")  # each stage costs seconds whenever the models change
        self.shell("git", "init", "-q")
        self.shell("git", "add", "-A")
        self.shell("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "study")

    def shell(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert not check or done.returncode == 0, done.stdout
        self.returncode = done.returncode
        return done.stdout

    def repro(self, *, check: bool = True) -> str:
        return self.shell("dvc", "repro", check=check)

    def edit(self, change: object) -> None:
        yaml = YAML()
        path = self.folder / "params.yaml"
        params = yaml.load(path)
        change(params)  # type: ignore[operator]
        yaml.dump(params, path)

    def keep_benchmarks(self, *kept: str) -> None:
        """Leaves only some of the benchmarks in dvc.yaml; the others are null."""
        others = [name for name in BENCHMARKS if name not in kept]
        self.edit(lambda params: params["profiles"]["embedded"]["evaluate"].update(dict.fromkeys(others)))
        path = self.folder / "dvc.yaml"
        left_out = {line for name in others for line in (f"        - {name}", f"      - results/{name}")}
        path.write_text("\n".join(line for line in path.read_text().split("\n") if line not in left_out))

    def files(self, output: str) -> dict[str, bytes]:
        folder = self.folder / output
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _change_three(params: dict) -> None:  # type: ignore[type-arg]
    variants = params["variants"]
    variants["fixed-1"]["lambda"].update(value=2.0)
    variants["adaptive-10"] = variants.pop("adaptive-high")
    params["grid"] = {"again": {"of": ["baseline"], "values": {"seed": [1]}}}


@pytest.mark.timeout(900)
def test_only_what_changed_is_done_again(tiny_model_folder: Path, tmp_path: Path) -> None:
    study = Study(tmp_path / "study", tiny_model_folder)

    # From nothing to a report.
    study.repro()
    first = {output: study.files(output) for output in ("data/activations", "models", "results", "reports")}
    assert {name.split("/")[0] for name in first["models"]} == {
        "baseline", "fixed-1", "adaptive", "schedule-0p1-10", "adaptive-high",
    }  # fmt: skip
    assert len(first["results"]) == 15  # five variants, two benchmarks, and what core keeps without each sequence
    assert (study.folder / "reports/report.html").is_file()

    # Again: nothing runs.
    assert "Running stage" not in study.repro()

    # One lambda, a renamed variant, and a grid of one more seed: the first and the last are trained and evaluated; each
    # other file stays as it was, byte for byte, but for the name in the files of the one that was renamed.
    before_edit = (study.folder / "params.yaml").read_text()
    study.edit(_change_three)
    output = study.repro()
    assert "Running stage 'harvest'" not in output
    assert output.count("is unchanged and reused") == 4 * 3, output  # in training and in both benchmarks
    assert "train: 2 variants in 1 group of 2; 1 pass over the data" in output
    for folder in ("models", "results"):
        before, after = first[folder], study.files(folder)
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        parts = {Path(name).parts[0 if folder == "models" else 1].split(".")[0] for name in changed}
        assert parts == {"fixed-1", "baseline-seed-1", "adaptive-high", "adaptive-10"}
    changed_models = study.files("models")
    for file in ("sae_weights.safetensors", "log.jsonl"):
        assert changed_models[f"adaptive-10/{file}"] == first["models"][f"adaptive-high/{file}"]

    # Back: nothing is trained or evaluated, and everything is as it was.
    (study.folder / "params.yaml").write_text(before_edit)
    output = study.repro()
    assert not re.search(r"Running stage '(harvest|train|evaluate)", output), output
    assert {name: study.files(name) for name in first} == first
    assert changed_models != first["models"]

    # Code that decides weights is edited, no version raised: every variant is trained again. A comment changes nothing.
    step = study.folder / "train/steps/adam.py"
    code = step.read_text()
    step.write_text(code.replace("_CLIP_EPS = 1.0e-6", "_CLIP_EPS = 1.0e-7"))
    output = study.shell("dvc", "repro", "train")
    assert "train: the code that decides" in output, output
    assert "train: 5 variants in 1 group of 5; 1 pass over the data" in output, output
    step.write_text(code + "# A comment.\n")
    output = study.shell("dvc", "repro", "train")
    assert output.count("is unchanged and reused") == 5, output
    assert study.files("models") == first["models"]
    step.write_text(code)

    # A larger budget: full shards keep their bytes, the partial one is remade, new ones are added.
    study.edit(lambda params: params["profiles"]["embedded"]["harvest"].update(num_rows=2400))
    output = study.shell("dvc", "repro", "harvest")
    before, after = first["data/activations"], study.files("data/activations")
    shards = sorted(name for name in after if name.startswith("blocks.1") and "/c/" in name)
    assert len(shards) == 5  # 32 sequences of 15 rows each: 2400 rows are exactly five shards of 480
    kept = [name for name in shards if before.get(name) == after[name]]
    assert kept == shards[:3]  # 1500 rows were three full shards and a partial one
    assert "harvest: 4 of 6 shards are unchanged and reused" in output  # one of them held out

    # A mistake, and a model that is not there, end at once and leave every output as it was.
    outputs = {name: study.files(name) for name in first}
    study.edit(lambda params: params["profiles"]["embedded"]["train"].update(l1=-1.0))
    output = study.repro(check=False)
    assert study.returncode != 0
    assert "train.l1: expected a number >= 0, got -1.0" in output
    assert {name: study.files(name) for name in first} == outputs
    study.edit(lambda params: params["profiles"]["embedded"]["train"].update(l1=1.0))
    study.edit(lambda params: params.update(profile="gemma-2-2b"))
    output = study.repro(check=False)
    assert study.returncode != 0
    assert "the language model 'google/gemma-2-2b' is not on this machine" in output
    assert {name: study.files(name) for name in first} == outputs

    # The cache that all this left is whole.
    study.shell("python", "pipeline.py", "store", "verify", "--full", "data/activations")
