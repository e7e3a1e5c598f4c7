"""Every form of an artefact in sae-bench gives what the store's own encode and decode give."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from evaluate.sae_bench import to_sae_bench
from store.sae.artefact import load_sae
from store.sae.weights import SAEWeights, decode, encode


@pytest.mark.parametrize("form", ["relu", "topk", "jumprelu", "gated"])
def test_every_form_keeps_its_latents_in_sae_bench(
    form: str, study: SimpleNamespace, saes: SimpleNamespace, add_sae: Callable[..., None]
) -> None:
    plain: SAEWeights = saes.random(1)
    draw = torch.rand(3, 64, generator=torch.Generator().manual_seed(2))
    weights = {
        "relu": plain,
        "topk": replace(plain, k=5),
        "jumprelu": replace(plain, threshold=draw[0]),
        "gated": replace(plain, r_mag=draw[1] - 0.5, b_mag=draw[2] - 0.5),
    }[form]
    add_sae("tested", weights)
    loaded, card = load_sae(Path(study.models) / "tested")
    assert loaded.form == form
    sae = to_sae_bench(loaded, card, device=torch.device("cpu"))
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.no_grad():
        latents = sae.encode(x)
        assert torch.equal(latents, encode(weights, x.float()))
        assert torch.equal(sae.decode(latents), decode(weights, latents))
        assert torch.equal(sae(x), decode(weights, latents))
    assert 0.0 < float((latents > 0).float().mean()) < 0.7
