"""A folder for a model hub: complete, readable by SAELens, its numbers those of the cards."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ruamel.yaml import YAML

from evaluate.publish import run
from store.errors import DamagedFile, StoreError
from store.sae.artefact import load_card, load_sae
from store.sae.weights import encode


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def three_saes(saes: SimpleNamespace, add_sae: Callable[..., None]) -> None:
    final = {"explained_variance": 0.98765, "l0": 12.34, "averaged_records": 5}
    learned = {"kind": "learned", "start": 10.0}
    add_sae("baseline", saes.random(1), final=final)
    add_sae("fixed-1", saes.random(2), settings={"kind": "fixed", "value": 1.0}, final=final | {"l0": 56.78})
    add_sae("adaptive-high", saes.random(3), settings=learned, final=final | {"lambda": 0.0123456})


@pytest.mark.usefixtures("three_saes")
def test_all_variants_are_copied_with_a_card_whose_numbers_are_those_of_the_artefacts(
    study: SimpleNamespace, hub: Path
) -> None:
    names = ["adaptive-high", "baseline", "fixed-1"]
    assert run(study.models, [], output=hub, with_diverged=False, license_id="mit") == names
    copied = {path.relative_to(hub): path.read_bytes() for path in hub.rglob("*") if path.is_file()}
    text = copied.pop(Path("README.md")).decode()
    originals = {path.relative_to(study.models): path for path in study.models.rglob("*") if path.is_file()}
    assert copied == {name: path.read_bytes() for name, path in originals.items()}
    _, front, body = text.split("---\n", 2)
    assert YAML(typ="safe").load(front) == {
        "library_name": "saelens",
        "tags": ["sparse-autoencoder", "mechanistic-interpretability", "saelens"],
        "license": "mit",
    }
    assert "# 3 sparse autoencoders on " in body
    assert "| SAE | architecture | d_sae | explained variance | L0 | final lambda |" in body
    assert "| baseline | relu | 64 | 0.9877 | 12.3 |  |" in body
    assert "| fixed-1 | relu | 64 | 0.9877 | 56.8 |  |" in body
    assert "| adaptive-high | relu | 64 | 0.9877 | 12.3 | 0.01235 |" in body
    for name in names:
        card = load_card(study.models / name)
        assert f"* {name}: key `{card.key}`, weights SHA-256 `{card.weights_sha256}`" in body
    assert "means over the last 5 log records" in body
    assert re.search(r"^\* all: .*`l1` 0\.3,", body, flags=re.MULTILINE)
    assert '* adaptive-high: `lambda` {"kind": "learned", "start": 10.0}\n' in body


@pytest.mark.usefixtures("three_saes")
def test_a_published_sae_loads_in_saelens_and_encodes_alike(study: SimpleNamespace, hub: Path) -> None:
    from sae_lens import SAE

    assert run(study.models, ["fixed-1"], output=hub, with_diverged=False) == ["fixed-1"]
    assert sorted(path.name for path in hub.iterdir()) == ["README.md", "fixed-1"]
    theirs = SAE.load_from_disk(hub / "fixed-1", device="cpu")
    weights, _ = load_sae(study.models / "fixed-1")
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    latents = encode(weights, x)
    assert 0.05 < float((latents > 0).float().mean()) < 0.95
    torch.testing.assert_close(theirs.encode(x), latents)


@pytest.mark.usefixtures("three_saes")
def test_a_diverged_variant_is_published_only_when_asked_for(
    study: SimpleNamespace, saes: SimpleNamespace, add_sae: Callable[..., None], hub: Path, tmp_path: Path
) -> None:
    add_sae("wild", saes.dead(), final={"diverged_at_step": 5}, num_training_rows=320)
    with pytest.raises(ValueError, match=r"expected SAEs that trained to the end, but wild diverged\. Name"):
        run(study.models, [], output=hub, with_diverged=False)
    assert not hub.exists()
    assert run(study.models, ["baseline"], output=hub, with_diverged=False) == ["baseline"]
    assert run(study.models, ["wild", "baseline"], output=tmp_path / "both", with_diverged=True) == ["wild", "baseline"]
    text = (tmp_path / "both" / "README.md").read_text()
    assert "**wild diverged at step 5: do not use it.**" in text
    assert "Trained on the same 6,400 rows of 32 channels" in text  # those of the one that trained to the end


def test_nothing_is_overwritten_and_nothing_damaged_is_published(
    study: SimpleNamespace, saes: SimpleNamespace, add_sae: Callable[..., None], hub: Path
) -> None:
    with pytest.raises(StoreError, match=r"expected trained SAEs in .* found none"):
        run(study.models, [], output=hub, with_diverged=False)
    add_sae("baseline", saes.random(1))
    with pytest.raises(ValueError, match=r"expected .*models to be new or an empty folder, found files in it"):
        run(study.models, [], output=study.models, with_diverged=False)
    with pytest.raises(StoreError, match=r"expected a trained SAE in .*nobody, found no card.json"):
        run(study.models, ["nobody"], output=hub, with_diverged=False)
    path = study.models / "baseline" / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(DamagedFile):
        run(study.models, [], output=hub, with_diverged=False)
    assert not hub.exists()
