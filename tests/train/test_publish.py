"""A folder for a model hub: complete, readable by SAELens, its figures those of the cards."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from evaluate.publish import run
from store.errors import DamagedFile, StoreError
from store.sae.artefact import load_sae
from store.sae.weights import encode
from train.config import VARIANTS, VariantConfig

Train = Callable[..., dict[str, bytes]]


def test_all_variants_are_exported_with_a_card_whose_figures_are_those_of_the_artefacts(
    train_files: Train, five: dict[str, VariantConfig], tmp_path: Path
) -> None:
    files = train_files(five)
    output = tmp_path / "hub"
    assert run(tmp_path / "models", [], output=output, with_diverged=False, license_id="mit") == sorted(five)
    exported = {p.relative_to(output).as_posix(): p.read_bytes() for p in output.rglob("*") if p.is_file()}
    text = exported.pop("README.md").decode()
    assert exported == files
    _, front, body = text.split("---\n", 2)
    parsed = YAML(typ="safe").load(front)
    assert parsed == {
        "library_name": "saelens",
        "tags": ["sparse-autoencoder", "mechanistic-interpretability", "saelens"],
        "license": "mit",
    }
    for name in five:
        card = load_sae(tmp_path / "models" / name)[1]
        row = next(line for line in body.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {card.final['explained_variance']:.4f} | {card.final['l0']:.1f} |" in row
        assert card.key in body
        assert card.weights_sha256 in body
    assert "* adaptive-high: `lambda` " in body
    assert re.search(r"\* all: .*`l1` 0\.5,", body)
    assert not re.search(r"TODO|\{|<[a-z]|your|xxx", re.sub(r"`[a-z_]+` \{[^}]*\}", "", body), re.IGNORECASE)


def test_an_exported_sae_loads_in_saelens_and_encodes_alike(
    train_files: Train, five: dict[str, VariantConfig], tmp_path: Path
) -> None:
    from sae_lens import SAE

    train_files({"fixed-1": five["fixed-1"]})
    assert run(tmp_path / "models", ["fixed-1"], output=tmp_path / "hub", with_diverged=False) == ["fixed-1"]
    theirs = SAE.load_from_disk(tmp_path / "hub" / "fixed-1", device="cpu")
    weights, _ = load_sae(tmp_path / "hub" / "fixed-1")
    x = 7.0 * torch.randn(32, 16, generator=torch.Generator().manual_seed(0)) + 5.0
    torch.testing.assert_close(theirs.encode(x), encode(weights, x))


def test_a_diverged_variant_is_exported_only_when_asked_for(
    train_files: Train, section: dict[str, Any], tmp_path: Path
) -> None:
    train_files(VARIANTS.validate_python({"calm": section["baseline"], "wild": {**section["baseline"], "lr": 1e30}}))
    models, output = tmp_path / "models", tmp_path / "hub"
    with pytest.raises(ValueError, match=r"expected SAEs that trained to the end, but wild diverged\. Name"):
        run(models, [], output=output, with_diverged=False)
    assert not output.exists()
    assert run(models, ["calm"], output=output, with_diverged=False) == ["calm"]
    assert run(models, [], output=tmp_path / "both", with_diverged=True) == ["calm", "wild"]
    assert "**wild diverged at step 5: do not use it.**" in (tmp_path / "both" / "README.md").read_text()


def test_nothing_is_overwritten_and_nothing_damaged_is_exported(
    train_files: Train, five: dict[str, VariantConfig], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    with pytest.raises(StoreError, match=r"expected trained SAEs in .* found none"):
        run(models, [], output=tmp_path / "hub", with_diverged=False)
    train_files({"baseline": five["baseline"]})
    with pytest.raises(ValueError, match=r"expected .*models to be new or an empty folder, found something"):
        run(models, [], output=models, with_diverged=False)
    with pytest.raises(StoreError, match=r"expected a trained SAE in .*nobody, found no card.json"):
        run(models, ["nobody"], output=tmp_path / "hub", with_diverged=False)
    path = models / "baseline" / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(DamagedFile):
        run(models, [], output=tmp_path / "hub", with_diverged=False)
    assert not (tmp_path / "hub").exists()
