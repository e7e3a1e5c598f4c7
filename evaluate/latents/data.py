"""All that is known of an SAE's latents, as it lies beside the result of the `latents` benchmark."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.latents.collect import Collected


@dataclass(frozen=True)
class LogitEffects:
    """Tokens that each latent raises and lowers most, the outermost first; of equal ones the smaller id."""

    raised: NDArray[np.int64]
    """(F, n) token ids."""
    raised_by: NDArray[np.float32]
    """(F, n)"""
    lowered: NDArray[np.int64]
    lowered_by: NDArray[np.float32]


@dataclass(frozen=True)
class LatentData:
    """F latents, C contexts of each, W tokens in a context."""

    num_firing: NDArray[np.int64]
    """(F,) rows on which a latent is above zero."""
    sum: NDArray[np.float64]
    """(F,) of its activations over all rows."""
    largest: NDArray[np.float32]
    """(F,)"""
    bin_width: NDArray[np.float64]
    """(F,) of the histogram of its activations above zero, from 0 on; 0 for a latent that never fires."""
    bin_counts: NDArray[np.int64]
    """(F, bins)"""
    places: NDArray[np.int64]
    """(F, C) sequence * context length + position of the context's token; -1 where there is no such context."""
    tokens: NDArray[np.int32]
    """(F, C, W) the text around it; -1 outside of the sequence."""
    windows: NDArray[np.float32]
    """(F, C, W) the latent's activations on it."""
    quantile_ranges: NDArray[np.float32]
    """(F, 10, 2) least and largest activation of each tenth of the sampled firings."""
    raised: NDArray[np.int32]
    """(F, n) tokens whose logits its direction raises most, see logit_effects.py."""
    raised_by: NDArray[np.float32]
    lowered: NDArray[np.int32]
    lowered_by: NDArray[np.float32]
    nearest: NDArray[np.int64]
    """(F, m) the nearest other latents by cosine of decoder directions."""
    nearest_cosine: NDArray[np.float64]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """By name, for a file."""
        return {field.name: np.ascontiguousarray(getattr(self, field.name)) for field in fields(self)}

    @staticmethod
    def of(arrays: Mapping[str, NDArray[Any]]) -> "LatentData":
        """From the arrays of a file."""
        return LatentData(**{field.name: arrays[field.name] for field in fields(LatentData)})

    def token_ids(self) -> list[int]:
        """Every token that is shown somewhere, in order."""
        ids = np.unique(np.concatenate([part.ravel() for part in (self.tokens, self.raised, self.lowered)]))
        return [int(id_) for id_ in ids if id_ >= 0]


def assembled(
    collected: Collected,
    effects: LogitEffects,
    nearest: tuple[NDArray[np.int64], NDArray[np.float64]],
    *,
    text: NDArray[np.uint32],
    tokens_before: int,
) -> LatentData:
    """Puts together what the parts found; `text` (sequences, context) are the tokens that places speak of."""
    return LatentData(
        num_firing=collected.num_firing,
        sum=collected.sum,
        largest=collected.largest,
        bin_width=collected.bin_width,
        bin_counts=collected.bin_counts,
        places=collected.places,
        tokens=tokens_around(collected.places, text, width=collected.windows.shape[2], before=tokens_before),
        windows=collected.windows,
        quantile_ranges=collected.quantile_ranges,
        raised=effects.raised.astype(np.int32),
        raised_by=effects.raised_by,
        lowered=effects.lowered.astype(np.int32),
        lowered_by=effects.lowered_by,
        nearest=nearest[0],
        nearest_cosine=nearest[1],
    )


def tokens_around(places: NDArray[np.int64], text: NDArray[np.uint32], *, width: int, before: int) -> NDArray[np.int32]:
    """The tokens of windows around places (F, C): (F, C, width), -1 outside of a sequence or where no place is."""
    length = text.shape[1]
    sequence, position = np.divmod(places, length)
    around = position[:, :, None] + np.arange(width) - before
    inside = (around >= 0) & (around < length) & (places >= 0)[:, :, None]
    tokens = text[np.where(places >= 0, sequence, 0)[:, :, None], np.where(inside, around, 0)].astype(np.int32)
    return np.where(inside, tokens, np.int32(-1))
