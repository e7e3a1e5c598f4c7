"""Whole harvests of known features: the same bytes whatever happens on the way, with the truth beside them."""

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from harvest.config import HarvestConfig
from harvest.dispatch import HarvestResources
from harvest.repair import harvest_again
from harvest.run import run
from harvest.synthetic import load_synthetic
from store.cache.manifest import load_manifest
from store.cache.truth import Truth, read_truth
from store.care.info import describe
from store.care.repair import repair
from store.care.transcode import export
from store.care.verify import verify
from store.errors import DamagedFile, MismatchedCache
from store.files.open import open_files
from store.read.cache import ActivationCache
from tests.synthetic_cache import HOOKS, harvest_synthetic, synthetic_settings


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache; copied, never changed."""
    folder = tmp_path_factory.mktemp("synthetic")
    harvest_synthetic(folder)
    return folder / "activations"


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def truth_of(cache: Path, hook: str) -> Truth:
    files = open_files(cache)
    return read_truth(files, load_manifest(files), hook)


def test_tokens_are_the_numbers_of_samples(harvested: Path) -> None:
    cache = ActivationCache(harvested)
    assert cache.tokens().reshape(-1).tolist() == list(range(20 * 64))
    assert cache.held_out_tokens().reshape(-1).tolist() == list(range(2**31, 2**31 + 6 * 64))


def test_the_truth_says_what_the_held_out_rows_are_made_of(harvested: Path) -> None:
    cache = ActivationCache(harvested, splits=("held_out",))
    for hook in HOOKS:
        truth = truth_of(harvested, hook)
        fires = truth.fires()
        assert fires.shape == (6 * 64, 24)
        bits = cache.rows(hook, np.arange(6 * 64), split="held_out")
        rows = (bits.astype(np.uint32) << 16).view(np.float32)
        for row, on in list(zip(rows, fires, strict=True))[:50]:
            chosen = truth.directions[on].T
            left = row - chosen @ np.linalg.lstsq(chosen, row, rcond=None)[0]
            assert np.abs(left).max() < 0.03 if on.any() else not row.any()  # bfloat16 has 8 bits
        assert np.abs(truth.frequencies - fires.mean(axis=0)).max() < 0.15
        assert truth.mean_active == pytest.approx(fires.sum(axis=1).mean(), rel=0.1)
    assert truth_of(harvested, HOOKS[2]).depths.tolist() == [0] * 3 + [1] * 6 + [2] * 12 + [0] * 3
    assert (truth_of(harvested, HOOKS[0]).parents == -1).all()


def test_a_larger_budget_keeps_full_shards_and_gives_the_bytes_of_one_harvest(harvested: Path, tmp_path: Path) -> None:
    harvest_synthetic(tmp_path, num_rows=12 * 64)
    first = tree(tmp_path / "activations")
    harvest_synthetic(tmp_path)
    grown = tree(tmp_path / "activations")
    assert grown["synthetic.orthogonal/c/0/0"] == first["synthetic.orthogonal/c/0/0"]
    assert {name: data for name, data in grown.items() if name in tree(harvested)} == {
        name: data for name, data in tree(harvested).items() if name in grown
    }
    assert load_manifest(tmp_path / "activations").digest == load_manifest(harvested).digest


def test_another_hook_adds_its_rows_and_its_truth_alone(harvested: Path, tmp_path: Path) -> None:
    harvest_synthetic(tmp_path, hooks=["synthetic.orthogonal"])
    assert [path.name for path in (tmp_path / "activations/held_out/truth").iterdir()] == [
        "synthetic.orthogonal.safetensors"
    ]
    harvest_synthetic(tmp_path)
    assert load_manifest(tmp_path / "activations").digest == load_manifest(harvested).digest


def test_workers_give_the_same_bytes(harvested: Path, tmp_path: Path) -> None:
    harvest_synthetic(tmp_path, resources=HarvestResources("cpu", num_workers=2))
    assert load_manifest(tmp_path / "activations").digest == load_manifest(harvested).digest


def test_an_estimate_says_what_it_takes_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(
        HarvestConfig.model_validate(synthetic_settings()), model=None, output=tmp_path / "activations",
        scratch=tmp_path / "scratch", resources=HarvestResources("cpu"), reuse=True, estimate_only=True,
    )  # fmt: skip
    assert found is None
    assert not (tmp_path / "activations").exists()
    assert "1.66k tokens through the model, 4.99k rows at 3 hooks to store" in capsys.readouterr().err


@pytest.mark.parametrize("damaged", ["held_out/truth/synthetic.hierarchy.safetensors", "synthetic.correlated/c/1/0"])
def test_what_is_damaged_is_found_and_made_again(harvested: Path, tmp_path: Path, damaged: str) -> None:
    cache = tmp_path / "activations"
    shutil.copytree(harvested, cache)
    data = bytearray((cache / damaged).read_bytes())
    data[-1] ^= 1
    (cache / damaged).write_bytes(data)
    (problem,) = verify(cache, full=True, num_threads=1)
    assert damaged in problem
    config = HarvestConfig.model_validate(synthetic_settings())
    done = repair(
        cache,
        output="",
        scratch=tmp_path / ".repair",
        harvest_again=functools.partial(harvest_again, config=config, model=None, damaged=cache, device="cpu"),
        accept_different_bytes=False,
        num_threads=1,
    )
    assert done.harvested == [damaged]
    assert tree(cache) == tree(harvested)


def test_an_export_keeps_the_truth(harvested: Path, tmp_path: Path) -> None:
    export(harvested, tmp_path / "plain", codec="none", num_threads=1)
    name = "held_out/truth/synthetic.hierarchy.safetensors"
    assert (tmp_path / "plain" / name).read_bytes() == (harvested / name).read_bytes()
    assert verify(tmp_path / "plain", full=True, num_threads=1) == []


def test_info_says_what_the_features_are(harvested: Path) -> None:
    text = describe(harvested)
    assert "language model   none: known features" in text
    assert "synthetic.hierarchy: 24 features, " in text
    assert "21 of them in trees of depth 2" in text


def test_a_truth_that_does_not_fit_is_refused(harvested: Path, tmp_path: Path) -> None:
    cache = tmp_path / "activations"
    shutil.copytree(harvested, cache)
    path = cache / "held_out/truth/synthetic.orthogonal.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedFile, match="expected safetensors in"):
        truth_of(cache, "synthetic.orthogonal")


def test_a_machine_that_makes_other_directions_is_refused(harvested: Path) -> None:
    spec = load_manifest(harvested).spec
    other = spec.model.model_copy(update={"weights_sha256": "0" * 64 + ":tensors"})
    with pytest.raises(MismatchedCache, match="this machine makes others from the same settings"):
        load_synthetic(spec.model_copy(update={"model": other}), HOOKS)


def test_the_digest_of_the_features_does_not_depend_on_the_number_of_threads(harvested: Path) -> None:
    number = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        load_synthetic(load_manifest(harvested).spec, HOOKS)  # refuses others
    finally:
        torch.set_num_threads(number)
