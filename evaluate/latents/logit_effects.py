"""Which tokens a latent raises and lowers most when nothing but the head stands behind it.

The effect of a latent on a token is that of its decoder direction on the token's logit, through the model's own final
norm and unembedding:

    effect = unembed(norm(direction)) - unembed(norm(0))

So it is what the logit would be of a residual stream that consists of the direction alone, without what norm and head
add to any input. A norm divides by a length: behind other text the effect is a positive multiple of this one, the
same for all tokens, so that the order of tokens is right and the size is comparable between latents only. Soft-capping
is increasing and leaves the order as it is; it is left out. Layers between the hook and the head are not considered.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluate.latents.best import best_of_each
from evaluate.latents.data import LogitEffects
from language_model.structure import family_of
from store.sae.geometry import unit_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_TOKENS = 10
_BLOCK_LOGITS = 2**25


@torch.no_grad()
def logit_effects(model: "PreTrainedModel", W_dec: Tensor, *, count: int = NUM_TOKENS) -> LogitEffects:
    """Effects of every latent of a decoder (F, d), in float32."""
    norm = getattr(model.base_model, family_of(model).final_norm)
    head: Tensor = model.get_output_embeddings().weight
    directions = unit_rows(W_dec.to(head.device, torch.float32))
    normed = norm(directions).float() - norm(torch.zeros_like(directions[:1])).float()
    return extremes(normed, head, count=min(count, len(head)))


def extremes(normed: Tensor, head: Tensor, *, count: int) -> LogitEffects:
    """The largest and smallest products of directions (F, d) with rows of the unembedding (vocabulary, d).

    Part by part of the vocabulary: neither all logits nor a float32 copy of the unembedding are held.
    """
    at_once = max(count, _BLOCK_LOGITS // len(normed))
    parts: dict[bool, list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]] = {True: [], False: []}
    for first in range(0, len(head), at_once):
        logits = normed @ head[first : first + at_once].float().T
        for raises, of_part in parts.items():
            values = logits if raises else -logits
            worst = values.topk(min(count, values.shape[1]), dim=1).values[:, -1:]
            latent, token = (values >= worst).nonzero(as_tuple=True)
            of_part.append(
                (latent.cpu().numpy(), first + token.cpu().numpy(), values[latent, token].double().cpu().numpy())
            )
    found = {}
    for raises, of_part in parts.items():
        latent, token, values = (np.concatenate(columns) for columns in zip(*of_part, strict=True))
        best = best_of_each(latent, values, token, count=count)
        shape = (len(normed), count)
        found[raises] = token[best].reshape(shape), values[best].reshape(shape).astype(np.float32)
    return LogitEffects(found[True][0], found[True][1], found[False][0], -found[False][1])
