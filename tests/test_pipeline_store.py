"""The `store` commands of the program: what they print, what they leave, and one clear error for bad input."""

import json
from pathlib import Path

import numpy as np
import pytest

from language_model.load import identify
from pipeline import main
from store.identity import ModelIdentity
from store.read.cache import ActivationCache
from store.record import plain
from tests.imports import ROOT
from tests.store.cache_fixture import HOOKS, write_cache

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("commands") / "cache")


def errors_of(capsys: Capture) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]


def test_info_prints_a_page_or_one_json_object(folder: Path, capsys: Capture) -> None:
    assert main(["store", "info", str(folder)]) == 0
    assert "328 rows, 112 held out" in capsys.readouterr().out
    assert main(["store", "info", "--json", str(folder)]) == 0
    known = json.loads(capsys.readouterr().out)
    assert known["num_rows"] == 328
    assert set(known["hooks"]) == set(HOOKS)


def test_sample_prints_rows_and_saves_their_bits(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "sample.npy"
    assert main(["store", "sample", str(folder), "-n", "3", "--hook", HOOKS[1], "--npy", str(target)]) == 0
    printed = capsys.readouterr().out
    numbers = [int(line.split()[1].rstrip(":")) for line in printed.splitlines() if line.startswith("row ")]
    np.testing.assert_array_equal(np.load(target), ActivationCache(folder).rows(HOOKS[1], numbers))
    assert main(["store", "sample", str(folder), "--hook", "blocks.9.hook_resid_post"]) == 1
    (error,) = errors_of(capsys)
    assert "expected a hook of the cache" in error


def test_verify_repair_and_export_say_what_they_did(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "exported"
    assert main(["store", "export", str(folder), str(target), "--codec", "zstd", "--threads", "1"]) == 0
    assert f"{target}: 328 rows per hook in the codec zstd, checked" in capsys.readouterr().out
    assert main(["store", "verify", "--full", str(target)]) == 0
    assert f"{target}: every byte is as written" in capsys.readouterr().out
    assert main(["store", "verify", str(target)]) == 0
    assert main(["store", "repair", "--no-harvest", str(target)]) == 0
    assert f"{target}: nothing to repair" in capsys.readouterr().out
    (target / "tokens/c/0/0").unlink()
    assert main(["store", "verify", str(target)]) == 1
    missing, advice = errors_of(capsys)
    assert "tokens/c/0/0: expected" in missing
    assert f"1 of the files of {target} cannot be trusted. Run `python pipeline.py store repair {target}`" in advice
    assert main(["store", "repair", "--no-harvest", str(target)]) == 1
    (error,) = errors_of(capsys)
    assert "found no copy with the recorded bytes of" in error


@pytest.mark.parametrize("command", [["info"], ["verify"], ["sample"], ["repair", "--no-harvest"]])
def test_what_is_no_cache_is_one_clear_error(tmp_path: Path, capsys: Capture, command: list[str]) -> None:
    assert main(["store", *command, str(tmp_path / "nothing")]) == 1
    (error,) = errors_of(capsys)
    assert error.startswith(f"error: expected an activation cache in {tmp_path}/nothing, found no such folder")


@pytest.mark.parametrize(
    "wrong", [["verify"], ["export", "a", "b"], ["export", "a", "b", "--codec", "lossy"], ["sample", "a", "-n", "0"]]
)
def test_wrong_usage_is_exit_code_2(wrong: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["store", *wrong])
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_sample_spells_tokens_of_a_local_checkpoint(
    tiny_model_folder: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = identify(tiny_model_folder, str(tiny_model_folder), None)
    spec = {**plain(model), "d_model": 48, "vocab_size": 100}
    folder = write_cache(tmp_path / "cache", model=ModelIdentity(**spec))
    command = ["store", "sample", str(folder), "-n", "1"]
    monkeypatch.chdir(tmp_path)

    assert main(command) == 0
    assert "'" not in capsys.readouterr().out  # numbers: nothing here says where the checkpoint is
    assert main([*command, "--model", str(tiny_model_folder)]) == 0
    spelled = capsys.readouterr().out.splitlines()[-1]
    assert "'" in spelled

    params = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(params.replace("name: embedded", f"name: {tiny_model_folder}", 1))
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == spelled

    assert main([*command, "--model", "embedded"]) == 1
    (error,) = errors_of(capsys)
    assert "error: expected the tokenizer of the cache" in error
    assert "Name the language model that the cache was harvested with, or leave --model out" in error
