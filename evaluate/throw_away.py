"""A small SAE to run sae-bench on once, so that it fills its caches with what is not about any SAE."""

import torch

from evaluate.benchmarks.context import BenchmarkContext
from evaluate.sae_bench import StoredSAE, to_sae_bench
from store.sae.weights import SAEWeights


def throw_away_sae(context: BenchmarkContext, hook: str, *, d_sae: int) -> StoredSAE:
    """Random directions, always the same, in the shape of the SAEs at `hook`."""
    card = next(card for card in context.cards.values() if card.hook == hook)
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(d_sae, card.d_model, generator=generator)
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    weights = SAEWeights(W_dec.T.contiguous(), torch.zeros(d_sae), W_dec, torch.zeros(card.d_model))
    return to_sae_bench(weights, card, device=context.device)
