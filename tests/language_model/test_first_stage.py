"""`pipeline.py language_model`: one message for each thing that a later stage could not do, and nothing is written."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline import main
from tests.language_model.checkpoints import byte_level, copied, edit, save_model, save_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2 layers and 64 positions."""
    folder = save_model(tmp_path_factory.mktemp("llama"), "Llama")
    save_tokenizer(folder, byte_level(), "GPT2Tokenizer")
    return folder


class FirstStage:
    """A folder to run the stage in, with the embedded profile on another model."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.record = folder / "data" / "language_model.json"
        self.record.parent.mkdir()
        self.record.write_text("as it was")

    def run(self, **harvest: Any) -> int:  # noqa: ANN401 - settings of any type
        yaml = YAML(typ="safe")
        params = yaml.load(ROOT / "params.yaml")
        profile = params["profiles"]["embedded"]
        profile["language_model"]["name"] = str(self.model)
        profile["harvest"] |= {"context_length": 64, "hooks": ["blocks.1.hook_resid_post"]} | harvest
        profile["train"]["hook"] = profile["harvest"]["hooks"][0]
        with (self.folder / "params.yaml").open("w") as file:
            yaml.dump(params, file)
        return main(["language_model", "--params", str(self.folder / "params.yaml")])


@pytest.fixture
def stage(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FirstStage:
    monkeypatch.chdir(tmp_path)
    return FirstStage(tmp_path, copied(llama, tmp_path / "model"))


def test_a_model_that_every_stage_can_run_is_recorded(stage: FirstStage) -> None:
    assert stage.run() == 0
    assert '"bos_token_id": 2' in stage.record.read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_length": 65}, "expected a context_length of at most the 64 positions of"),
        ({"hooks": ["blocks.2.hook_resid_post"]}, "layer out of range: expected a hook on layers 0 to 1 of"),
        ({"chunks_per_shard": 10**9, "num_rows": 10**10}, "expected shards of at most 4.3 GB a hook"),
    ],
)
def test_settings_that_the_model_cannot_serve_are_refused_here(
    stage: FirstStage, settings: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.run(**settings) == 1
    check_one_message(stage, message, capsys)


def check_one_message(stage: FirstStage, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert said[0].startswith(f"error: {message}")
    assert stage.record.read_text() == "as it was"


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("config.json", {"bos_token_id": 1}, "expected one bos token, got 1 ('<eos>') in"),
        ("config.json", {"quantization_config": {"quant_method": "fp8"}}, "expected weights in float32, float16 or"),
        (
            "config.json",
            {"model_type": "mine", "auto_map": {}},
            "expected a causal language model of the types gemma, ",
        ),
        ("config.json", {"num_hidden_layers": 5}, "expected the weights in"),
    ],
)
def test_a_checkpoint_that_is_not_what_it_says_is_refused_here(
    stage: FirstStage, file: str, entries: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(stage.model, file, **entries)
    assert stage.run() == 1
    check_one_message(stage, message, capsys)


def test_a_hook_that_the_models_layers_do_not_have_is_refused_here(
    stage: FirstStage, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(stage.model, "Granite")
    assert stage.run(hooks=["blocks.0.hook_mlp_out"]) == 1
    check_one_message(stage, "expected a hook on resid_pre or resid_post of granite-", capsys)


def test_the_stage_needs_no_codecs_and_no_transformer_lens(tmp_path: Path) -> None:
    """Importing them takes longer than all else that the stage does."""
    code = (
        "import sys, pipeline\n"
        "assert pipeline.main(['language_model', '--params', sys.argv[1]]) == 0\n"
        "print([name for name in ('numba', 'transformer_lens', 'sae_lens', 'datasets') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(ROOT / "params.yaml")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
