"""docs/my-model.md, followed to the letter on a miniature model: every command on the page is run as it stands."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from harvest.text_config import MixtureText
from pipeline import main
from store.cache.manifest import load_manifest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "my-model.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_every_command_of_the_page_runs_on_a_model_and_a_text_of_ones_own(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_folder, "my-model")
    texts = Path("my-texts")
    (texts / "books").mkdir(parents=True)
    book = "".join(f"On day {n} there were {n * n} foxes, and each had {n % 9} names.\n\n" for n in range(1500))
    (texts / "books" / "foxes.txt").write_text(book)
    (texts / "notes.md").write_text("".join(f"* note {n}: the store keeps {n} shards\n" for n in range(1500)))
    rows = [{"text": f"Row {n} of a table: hens, {n % 7} of them, and {n * 3} eggs."} for n in range(900)]
    (texts / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["profile"] = "my-model"
    params["variants"] = {name: params["variants"][name] for name in ("baseline", "fixed-1")}
    profile = params["profiles"]["my-model"]  # only sizes are made small
    profile["harvest"] |= {"num_rows": 30_000, "num_held_out_sequences": 16, "context_length": 64}
    profile["train"] |= {"d_sae": 64, "num_rows": 20_000, "batch_rows": 256}
    profile["evaluate"]["core"] |= {"num_reconstruction_sequences": 8, "num_sparsity_sequences": 16}
    profile["evaluate"]["latents"]["num_held_out_sequences"] = 16
    profile["evaluate"] |= {"sparse_probing_sae_probes": None, "autointerp": None}  # minutes, and too little text
    profile["harvest"]["sequences_per_chunk"] = 16  # of rows as small as these, one chunk would hold all
    yaml.dump(params, Path("params.yaml"))
    said = {}
    for line in "".join(blocks("sh")).splitlines():
        program, script, *arguments = shlex.split(line)
        assert (program, script) == ("python", "pipeline.py")
        assert main(arguments) == 0, capsys.readouterr().err
        said[arguments[0]] = capsys.readouterr()
    assert list(said) == ["language_model", "harvest", "store", "train", "evaluate", "report"]
    account = load_manifest(Path("data/activations")).text_account
    assert account is not None
    assert account.unused_parts() == []  # the fault that was found: files that were listed and never read
    for place in (said["harvest"].out, said["store"].out, Path("reports/report.md").read_text()):
        for name in ("books/foxes.txt", "notes.md", "table.jsonl"):
            assert re.search(rf"{name}.*documents read, [\d,]+ trained on", place), name
    assert "74 steps of 256 rows are few for an SAE" in said["train"].err  # 19,152 rows: 19 chunks of 1,008


def test_the_mixture_of_the_page_is_a_mixture() -> None:
    [block] = blocks("yaml")
    text = MixtureText.model_validate(YAML(typ="safe").load(block)["text"])
    assert [source.weight for source in text.sources] == [2.0, 1.0]
