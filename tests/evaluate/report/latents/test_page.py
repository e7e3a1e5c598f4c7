"""The latent browser's files: what is in them, how large the page is, and that text stays text."""

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from evaluate.report import page as report
from evaluate.report.inputs import gather
from evaluate.report.latents import page
from evaluate.report.latents.neuronpedia import feature
from evaluate.report.latents.numbers import FIELDS
from evaluate.report.latents.records import Vocabulary, context, inline_json, rounded
from evaluate.report.latents.view import Explanation, VariantLatents, explanations, views
from evaluate.results import BenchmarkResult, read_result, write_result
from store.sae.geometry import unit_rows
from tests.evaluate.report.hostile import HOSTILE_NAME, HOSTILE_TEXTS, hostile

VARIANTS = ["baseline", "fixed-1", "adaptive", "dead"]


@pytest.fixture(scope="session")
def latents(empty_study: SimpleNamespace, six_saes: Path) -> dict[str, VariantLatents]:
    """The latents of four evaluated SAEs."""
    inputs = gather(
        empty_study.config,
        variants=VARIANTS,
        models_folder=six_saes / "models",
        results_folder=six_saes / "results",
        cache=six_saes / "data" / "activations",
    )
    return views(inputs, six_saes / "results")


def island(path: Path) -> dict[str, Any]:
    """The data in a page, as its script reads them."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(text)


def called(path: Path, function: str) -> dict[str, Any]:
    """What a file of the folder calls a function of the page with."""
    text = path.read_text()
    assert text.startswith(f"{function}(")
    assert text.endswith(");\n")
    return json.loads(text[len(function) + 1 : -3])


def test_every_latent_is_in_the_folder_and_a_sample_with_its_matches_in_the_page(
    latents: dict[str, VariantLatents], tmp_path: Path
) -> None:
    path = page.write(latents, tmp_path, page_bytes=150_000)
    data = island(path)
    assert path.stat().st_size < 150_000 + 60_000  # the data, and the page around them
    assert list(data["indexes"]) == ["0", "1", "2", "3"]
    assert 0 < len(data["latents"]) < 4 * 64
    first = data["latents"][data["facts"]["first"]]
    assert all(f"{variant}/{latent}" in data["latents"] for variant, latent, _ in first["matches"])
    whole: dict[str, Any] = {}
    for number, (name, of_one) in enumerate(latents.items()):
        files = sorted(entry.name for entry in (tmp_path / "latents" / name).iterdir())
        assert files == ["0.js", "batch-0.json", "index.js"]
        pack = called(tmp_path / "latents" / name / "0.js", "latentPack")
        assert list(pack["latents"]) == [f"{number}/{latent}" for latent in range(of_one.num_latents)]
        index = called(tmp_path / "latents" / name / "index.js", "latentIndex")
        assert index["variant"] == number
        assert len(index["columns"]["density"]) == 64
        whole |= pack["latents"]
    for key, detail in data["latents"].items():
        assert {**detail, "raised": 0, "lowered": 0, "top": 0, "quantiles": 0} == {
            **whole[key], "raised": 0, "lowered": 0, "top": 0, "quantiles": 0
        }  # fmt: skip


@pytest.mark.parametrize(("page_bytes", "has_index"), [(1, False), (60_000, True)])
def test_a_small_budget_is_kept_and_what_does_not_fit_is_in_the_folder(
    page_bytes: int, has_index: bool, latents: dict[str, VariantLatents], tmp_path: Path
) -> None:
    embedded = page.embed(latents, page_bytes)
    assert embedded.nbytes <= page_bytes + 100
    assert bool(embedded.indexes) == has_index
    assert (embedded.first is None) == (not embedded.details)
    data = island(page.write(latents, tmp_path, page_bytes=page_bytes))
    assert len(data["latents"]) == len(embedded.details)


def test_a_detail_says_what_the_arrays_say(latents: dict[str, VariantLatents], six_saes: Path, tmp_path: Path) -> None:
    page.write(latents, tmp_path)
    arrays = load_file(six_saes / "results" / "latents" / "fixed-1.safetensors")
    pack = called(tmp_path / "latents" / "fixed-1" / "0.js", "latentPack")
    latent = int(arrays["num_firing"].argmax())
    detail = pack["latents"][f"1/{latent}"]
    assert detail["firing"] == arrays["num_firing"][latent]
    assert detail["largest"] == float(f"{arrays['largest'][latent]:.3g}")
    sequence, position, own, tokens, values = detail["top"][0]
    assert sequence * 12 + position == arrays["places"][latent, 0]
    assert values[own] == detail["largest"]
    inside = arrays["tokens"][latent, 0] >= 0
    assert len(tokens) == len(values) == inside.sum()
    assert values == [float(f"{value:.3g}") for value in arrays["windows"][latent, 0][inside]]
    spelled = latents["fixed-1"].spelling
    assert [pack["tokens"][token] for token in tokens] == [spelled[id_] for id_ in arrays["tokens"][latent, 0][inside]]
    assert [other for other, _ in detail["nearest"]] == arrays["nearest"][latent].tolist()
    assert [variant for variant, _, _ in detail["matches"]] == [0, 2, 3]


def test_matches_are_those_of_the_decoders(
    empty_study: SimpleNamespace, latents: dict[str, VariantLatents], six_saes: Path
) -> None:
    from store.sae.artefact import load_sae

    first, second = (unit_rows(load_sae(six_saes / "models" / name)[0].W_dec.double()) for name in ("baseline", "dead"))
    cosines = (first @ second.T).numpy()
    numbers, found = latents["baseline"].matches["dead"]
    assert numbers.tolist() == cosines.argmax(axis=1).tolist()
    assert found == pytest.approx(cosines.max(axis=1))
    assert latents["dead"].matches["baseline"][0].tolist() == cosines.argmax(axis=0).tolist()


def test_the_same_inputs_give_the_same_bytes_and_nothing_stays_of_an_earlier_browser(
    latents: dict[str, VariantLatents], tmp_path: Path
) -> None:
    page.write(latents, tmp_path / "a")
    alone = {"dead": dataclasses.replace(latents["dead"], matches={})}
    page.write(alone, tmp_path / "b")
    page.write(latents, tmp_path / "b")
    page.write(latents, tmp_path / "c")
    page.write(alone, tmp_path / "c")

    def contents(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "c" / "latents").iterdir()) == [
        "dead", "latents.csv", "latents.json", "matches.csv"
    ]  # fmt: skip
    page.remove(tmp_path / "c")
    assert contents(tmp_path / "c") == {}


def test_the_report_writes_and_links_it_and_a_report_without_latents_has_none(
    study: SimpleNamespace, six_saes: Path
) -> None:
    shutil.copytree(six_saes, study.root, dirs_exist_ok=True)

    def write() -> str:
        return report.run(
            study.config,
            variants=["baseline", "fixed-1"],
            models_folder=study.models,
            results_folder=study.results,
            cache=study.cache,
            output=study.root / "reports",
        ).read_text()

    assert '<a href="latents.html">look at the latents</a>' in write()
    assert (study.root / "reports" / "latents" / "fixed-1" / "index.js").is_file()
    study.config = study.config.model_copy(update={"latents": None})
    assert "latents.html" not in write()
    assert not (study.root / "reports" / "latents.html").exists()
    assert not (study.root / "reports" / "latents").exists()


def test_tables_hold_every_latent_and_every_match(latents: dict[str, VariantLatents], tmp_path: Path) -> None:
    page.write(latents, tmp_path)
    with (tmp_path / "latents" / "latents.csv").open() as file:
        rows = list(csv.DictReader(file))
    records = json.loads((tmp_path / "latents" / "latents.json").read_text())
    assert len(rows) == len(records) == 4 * 64
    assert tuple(rows[0]) == FIELDS
    row, record = rows[64 + 5], records[64 + 5]
    assert (row["variant"], row["latent"]) == ("fixed-1", "5") == (record["variant"], str(record["latent"]))
    assert float(row["density"]) == record["density"] == latents["fixed-1"].density[5]
    assert rows[3 * 64]["mean_activation"] == ""  # a dead latent has none
    with (tmp_path / "latents" / "matches.csv").open() as file:
        matches = list(csv.DictReader(file))
    assert len(matches) == 4 * 3 * 64
    assert matches[0]["other_variant"] == "fixed-1"


def test_neuronpedias_names_say_the_same(latents: dict[str, VariantLatents], tmp_path: Path) -> None:
    page.write(latents, tmp_path)
    of_one = latents["fixed-1"]
    batch = json.loads((tmp_path / "latents" / "fixed-1" / "batch-0.json").read_text())
    assert (batch["layer"], batch["sae_set"], len(batch["features"])) == (1, "fixed-1", 64)
    latent = int(of_one.data.num_firing.argmax())
    found = batch["features"][latent]
    assert found == json.loads(json.dumps(feature(of_one, latent)))
    assert found["feature_index"] == latent
    assert found["frac_nonzero"] == of_one.density[latent]
    assert len(found["pos_str"]) == len(found["pos_values"]) == len(found["neg_str"]) == 10
    assert sum(found["freq_hist_data_bar_heights"]) == of_one.data.num_firing[latent]
    assert len(found["freq_hist_data_bar_heights"]) == len(found["freq_hist_data_bar_values"])
    top, *_, last = found["activations"]
    assert top["maxValue"] == top["values"][top["maxValueTokenIndex"]] == rounded(of_one.data.largest[latent])
    assert len(top["tokens"]) == len(top["values"])
    assert (top["bin_min"], top["bin_contains"]) == (-1, 0)
    assert last["bin_contains"] == 0.1
    assert last["bin_min"] <= last["values"][last["qualifying_token_index"]] <= last["bin_max"]
    dead = json.loads((tmp_path / "latents" / "dead" / "batch-0.json").read_text())["features"][0]
    assert (dead["activations"], dead["freq_hist_data_bar_values"], dead["frac_nonzero"]) == ([], [], 0.0)


def test_explanations_are_those_of_autointerp_where_there_are_some(
    latents: dict[str, VariantLatents], tmp_path: Path
) -> None:
    assert explanations(None) == {}
    result = SimpleNamespace(
        details={"latents": {"3": {"explanation": "the word self", "score": 0.75}, "5": {"score": 1}}}
    )
    found = explanations(result)  # type: ignore[arg-type]
    assert found == {3: Explanation("the word self", 0.75)}
    explained = dataclasses.replace(latents["baseline"], explanations=found, judge="lexical baseline", matches={})
    data = island(page.write({"baseline": explained}, tmp_path))
    assert data["facts"]["judges"] == ["lexical baseline"]
    assert data["indexes"]["0"]["said"][2:4] == ["", "the word self"]
    assert data["indexes"]["0"]["score"][2:4] == [None, 0.75]
    rows = json.loads((tmp_path / "latents" / "latents.json").read_text())
    assert (rows[3]["score"], rows[3]["explanation"], rows[4]["score"]) == (0.75, "the word self", None)
    features = json.loads((tmp_path / "latents" / "baseline" / "batch-0.json").read_text())["features"]
    assert features[3]["explanations"] == [
        {"description": "the word self", "score": 0.75, "explanationModelName": "lexical baseline"}
    ]


def test_hostile_texts_and_names_are_data_in_every_file(latents: dict[str, VariantLatents], tmp_path: Path) -> None:
    output = tmp_path / "reports"
    path = page.write(hostile(latents), output)
    source = path.read_text()
    assert source.isascii()
    assert len(re.findall("<script", source)) == len(re.findall("</script", source)) == 2
    assert "<!--" not in source
    data = island(path)
    assert data["facts"]["variants"][1]["name"] == HOSTILE_NAME
    for text in HOSTILE_TEXTS:
        assert text in data["tokens"]
    folder = data["facts"]["variants"][1]["folder"]
    assert re.fullmatch(r"_[0-9a-f]{16}", folder)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["reports"]
    script = (output / "latents" / folder / "0.js").read_text()
    assert script.isascii()
    assert not set("<>&") & set(script)
    assert HOSTILE_TEXTS[0] in called(output / "latents" / folder / "0.js", "latentPack")["tokens"]


def test_the_script_makes_no_markup_and_runs_no_text() -> None:
    script = (Path(page.__file__).parents[1] / "templates" / "latents.js").read_text()
    for forbidden in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "fetch(",
    ):
        assert forbidden not in script
    assert "</script" not in script


def test_json_can_stand_in_a_script_and_numbers_are_short() -> None:
    assert inline_json({"a": "</script><!--\u2028&"}) == '{"a":"\\u003c/script\\u003e\\u003c!--\\u2028\\u0026"}'
    assert rounded(np.array([[0.0, 12.0], [0.012345, 123456.0]])) == [[0, 12], [0.0123, 123000]]
    assert rounded(-0.99999) == -1
    vocabulary = Vocabulary()
    assert [vocabulary.number(text) for text in ("a", "b", "a")] == [0, 1, 0]
    vocabulary.forget(1)
    assert vocabulary.texts() == ["a"]


def test_a_latent_that_never_fires_has_no_context(latents: dict[str, VariantLatents]) -> None:
    assert context(latents["dead"], 3, 0, Vocabulary()) is None


def test_results_that_are_written_anew_keep_their_arrays(six_saes: Path, tmp_path: Path) -> None:
    result: BenchmarkResult = read_result(six_saes / "results" / "latents" / "dead.json")
    write_result(tmp_path, result, b"bytes")
    assert read_result(tmp_path / "dead.json") == result
    assert (tmp_path / "dead.safetensors").read_bytes() == b"bytes"
