"""Running the upper part of a model alone, for every family and site, against running all of it."""

from pathlib import Path

import pytest
import torch

from benchmarks.miniatures import BOS, save_miniature
from evaluate.upper_layers import Resumable
from language_model.families import FAMILIES
from language_model.hooks import SITES
from language_model.load import load_model


@pytest.mark.parametrize("kind", FAMILIES)
def test_going_on_from_the_same_activations_gives_the_same_logits(kind: str, tmp_path: Path) -> None:
    model = load_model(save_miniature(tmp_path, kind), dtype=torch.float32, device="cpu")
    tokens = torch.randint(BOS + 1, 259, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=tokens).logits.flatten(0, 1)
    for site in SITES:
        if kind == "granite" and not site.startswith("resid"):
            continue
        for layer in range(3):
            resumable = Resumable(model, f"blocks.{layer}.hook_{site}")
            activations, final = resumable.run(tokens)
            assert torch.allclose(resumable.logits(final.flatten(0, 1)), expected, rtol=1e-4, atol=1e-4)
            assert torch.equal(resumable.resume(tokens, activations), final)
            assert not torch.allclose(resumable.resume(tokens, activations.flip(-1)), final)
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits.flatten(0, 1), expected)  # it was left as it was
