"""The latents benchmark over the tiny study: its figures, and one pass in which no SAE disturbs another."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from evaluate.benchmarks import latents
from evaluate.benchmarks.latents import peak_token_shares
from evaluate.latents.data import LatentData
from evaluate.results import read_arrays, read_result
from evaluate.task import BenchmarkFailed
from store.errors import DamagedFile
from store.read.cache import ActivationCache
from tests.evaluate.conftest import CONTEXT_LENGTH, HOOK


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def three_saes(saes: SimpleNamespace, add_sae: Callable[..., None]) -> None:
    add_sae("baseline", saes.identity())
    add_sae("fixed-1", saes.random(2), settings={"kind": "fixed", "value": 1.0})
    add_sae("dead", saes.dead(), settings={"kind": "fixed", "value": 2.0})


@pytest.mark.usefixtures("three_saes")
def test_figures_are_those_of_the_rows(study: SimpleNamespace, evaluate_all: Callable[..., None]) -> None:
    evaluate_all("latents")
    folder = study.results / "latents"
    result = read_result(folder / "baseline.json")
    # The identity SAE's latents are +x_i and -x_i: of two exactly one fires wherever the channel is not zero.
    cache = ActivationCache(study.cache)
    tokens = cache.held_out_tokens()[:6]
    bits = cache.rows(HOOK, np.arange(66), split="held_out")
    rows = (bits.astype(np.uint32) << 16).view(np.float32)[~np.isin(tokens[:, 1:], [0, 1, 2]).reshape(-1)]
    assert result.basis == {"rows": 65, "sequences": 6, "latents": 64}
    data = LatentData.of(read_arrays(folder, result))
    assert data.num_firing[:32].tolist() == (rows > 0).sum(axis=0).tolist()
    assert data.num_firing[32:].tolist() == (rows < 0).sum(axis=0).tolist()
    assert result.metrics["mean_density"] == pytest.approx(0.5, abs=1e-9) == (rows != 0).mean() / 2
    assert result.metrics["fraction_dead_latents"] == 0.0
    shares = np.concatenate([(rows > 0).mean(axis=0), (rows < 0).mean(axis=0)])
    assert result.metrics["fraction_dense_latents"] == (shares > 0.1).mean() < 1.0
    assert data.largest[:32].tolist() == pytest.approx(rows.max(axis=0).tolist())
    # +x_i is nearest to any other latent but -x_i, which is opposite: cosine 0, the first of equal ones.
    assert data.nearest[0].tolist() == [1, 2, 3, 4, 5]
    assert data.nearest_cosine[0].tolist() == [0.0] * 5
    sequence, position = divmod(int(data.places[7, 0]), CONTEXT_LENGTH)
    own = tokens[sequence, position]
    assert data.tokens[7, 0, 4] == own
    assert data.windows[7, 0, 4] == data.largest[7]
    assert result.details["tokens"][str(own)]

    dead = read_result(folder / "dead.json")
    assert dead.metrics["fraction_dead_latents"] == 1.0
    assert dead.metrics["mean_peak_token_share"] == 0.0
    assert dead.remarks == ["All 64 latents are dead: there is nothing to look at."]
    assert (read_arrays(folder, dead)["places"] == -1).all()


def test_the_share_of_the_commonest_peak() -> None:
    peaks = np.array([[5, 5, 7, 5], [1, 2, 3, 4], [9, -1, -1, -1], [-1, -1, -1, -1]], dtype=np.int32)
    assert peak_token_shares(peaks).tolist() == [0.75, 0.25, 1.0, 0.0]


@pytest.mark.usefixtures("three_saes")
def test_a_result_does_not_depend_on_which_other_saes_are_there(
    study: SimpleNamespace, evaluate_all: Callable[..., None]
) -> None:
    evaluate_all("latents")
    together = contents(study.results / "latents")
    assert sorted(together) == sorted(
        f"{name}{end}" for name in ("baseline", "fixed-1", "dead") for end in (".json", ".safetensors")
    )
    shutil.rmtree(study.root / "data" / ".evaluation")
    shutil.rmtree(study.results)
    shutil.rmtree(study.models / "baseline")
    evaluate_all("latents", reuse=False)
    alone = contents(study.results / "latents")
    assert alone == {name: data for name, data in together.items() if not name.startswith("baseline")}


@pytest.mark.usefixtures("three_saes")
def test_only_a_new_sae_is_looked_at_and_a_renamed_one_takes_its_arrays_along(
    study: SimpleNamespace,
    saes: SimpleNamespace,
    add_sae: Callable[..., None],
    evaluate_all: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluate_all("latents")
    before = contents(study.results / "latents")
    looked: list[list[str]] = []
    look = latents._look
    monkeypatch.setattr(latents, "_look", lambda some, *rest: looked.append(list(some)) or look(some, *rest))
    (study.models / "fixed-1").rename(study.models / "elsewhere")
    add_sae("fixed-1-again", saes.random(2), settings={"kind": "fixed", "value": 1.0})
    shutil.rmtree(study.models / "elsewhere")
    add_sae("new", saes.random(5), settings={"kind": "fixed", "value": 3.0})
    evaluate_all("latents")
    after = contents(study.results / "latents")
    assert looked == [["new"]]
    assert after["fixed-1-again.safetensors"] == before["fixed-1.safetensors"]
    assert after["baseline.json"] == before["baseline.json"]
    assert not [name for name in after if name.startswith("fixed-1.")]


@pytest.mark.usefixtures("three_saes")
def test_a_result_without_its_arrays_or_with_others_is_none(
    study: SimpleNamespace, evaluate_all: Callable[..., None]
) -> None:
    evaluate_all("latents")
    folder = study.results / "latents"
    before = contents(folder)
    (folder / "dead.safetensors").unlink()
    (folder / "baseline.safetensors").write_bytes(before["fixed-1.safetensors"])
    with pytest.raises(DamagedFile, match=r"expected .*baseline.safetensors with SHA-256 .* or remove baseline.json"):
        read_arrays(folder, read_result(folder / "baseline.json"))
    with pytest.raises(DamagedFile, match="got no file"):
        read_arrays(folder, read_result(folder / "dead.json"))
    evaluate_all("latents")
    assert contents(folder) == before


@pytest.mark.usefixtures("three_saes")
def test_an_interrupted_look_leaves_nothing_that_is_taken_for_whole(
    study: SimpleNamespace, evaluate_all: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = latents._keep
    kept: list[Path] = []

    def interrupted(folder: Path, *found: object) -> None:
        if kept:
            (folder / "latents.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt
        keep(folder, *found)
        kept.append(folder)

    monkeypatch.setattr(latents, "_keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_all("latents")
    monkeypatch.undo()
    evaluate_all("latents")
    assert len(contents(study.results / "latents")) == 6
    assert read_result(study.results / "latents" / "dead.json").metrics["mean_density"] == 0.0


@pytest.mark.usefixtures("three_saes")
def test_training_rows_are_read_as_well_where_that_is_asked_for(
    study: SimpleNamespace, evaluate_all: Callable[..., None]
) -> None:
    settings = study.config.latents.model_copy(update={"num_training_sequences": 3})
    study.config = study.config.model_copy(update={"latents": settings})
    evaluate_all("latents")
    result = read_result(study.results / "latents" / "baseline.json")
    assert result.basis["rows"] == 65 + 33
    assert result.details["sequences"] == {"held_out": 6, "training": 3}
    places = read_arrays(study.results / "latents", result)["places"]
    assert places.max() // CONTEXT_LENGTH in (6, 7, 8)  # of training sequences, which come behind the held-out ones

    settings = settings.model_copy(update={"num_training_sequences": 9})
    study.config = study.config.model_copy(update={"latents": settings})
    with pytest.raises(BenchmarkFailed, match=r"expected at least 9 training sequences .* the activation cache has 8"):
        evaluate_all("latents")


@pytest.mark.usefixtures("three_saes")
def test_held_out_rows_are_all_of_the_cache_that_it_needs(
    study: SimpleNamespace, cache_without_training_rows: Path, evaluate_all: Callable[..., None]
) -> None:
    study.cache = cache_without_training_rows
    evaluate_all("latents")
    assert len(contents(study.results / "latents")) == 6
