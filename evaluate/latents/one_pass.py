"""All SAEs of a sweep over the same rows of a cache, which are read once."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluate.latents.collect import Collected, Contexts, LatentCollector
from store.cache.split import Split
from store.sae.weights import SAEWeights, encode

if TYPE_CHECKING:
    from store.read.cache import ActivationCache

LATENTS_BYTES = 32 * 2**20
"""Activations of one SAE's latents that live at once, about."""
COLLECTED_BYTES = 2 * 2**30
"""Entries of all SAEs of a pass. More SAEs than fit take another pass over the rows."""


@dataclass(frozen=True)
class Text:
    """Sequences of a cache, held-out ones first."""

    tokens: NDArray[np.uint32]
    """(sequences, context)"""
    parts: tuple[tuple[Split, int], ...]
    """How many of them are of which split, from its beginning."""


def collect(
    saes: Mapping[str, SAEWeights],
    *,
    text: Text,
    hook: str,
    caches: "Mapping[Split, ActivationCache]",
    contexts: Contexts,
    ignored: frozenset[int],
    device: torch.device,
    progress: Callable[[int], object],
) -> dict[str, Collected]:
    """What each SAE's latents do on the text. `ignored` are tokens whose positions are no rows: BOS, EOS, padding.

    The first positions of a sequence, if the cache has no rows there, are none either.
    """
    found: dict[str, Collected] = {}
    counted = torch.from_numpy(~np.isin(text.tokens, np.array(sorted(ignored), dtype=np.uint32)))
    counted[:, : next(iter(caches.values())).spec.num_excluded_positions] = False
    for group in groups(saes, contexts):
        weights = {name: _on(saes[name], device) for name in group}
        collectors = {
            name: LatentCollector(contexts, num_latents=of_one.W_dec.shape[0], device=device)
            for name, of_one in weights.items()
        }
        for first, activations in _blocks(text, hook, caches):
            for name, of_one in weights.items():
                at_once = sequences_at_once(of_one.W_dec.shape[0], context_length=text.tokens.shape[1])
                for start in range(0, len(activations), at_once):
                    batch = activations[start : start + at_once].to(device)
                    sequences = np.arange(first + start, first + start + len(batch))
                    collectors[name].add(encode(of_one, batch), counted[sequences].to(device), sequences)
                    progress(1)
        found |= {name: collector.collected() for name, collector in collectors.items()}
    return found


def groups(saes: Mapping[str, SAEWeights], contexts: Contexts, budget: int = COLLECTED_BYTES) -> list[list[str]]:
    """The SAEs that share a pass, so that their entries fit in `budget` bytes; a pass has one SAE at least."""
    made: list[list[str]] = []
    free = 0
    for name, weights in saes.items():
        needed = contexts.nbytes(weights.W_dec.shape[0])
        if not made or needed > free:
            made.append([])
            free = budget
        made[-1].append(name)
        free -= needed
    return made


def sequences_at_once(num_latents: int, *, context_length: int) -> int:
    """Sequences in a batch. A function of the SAE's size alone: products of other shapes differ in their last bits."""
    return max(1, LATENTS_BYTES // (4 * num_latents * context_length))


def _blocks(text: Text, hook: str, caches: "Mapping[Split, ActivationCache]") -> Iterator[tuple[int, Tensor]]:
    """(first sequence, activations (S, T, d) float32), a shard at a time; zero where there are no rows, as at BOS.

    The rows of a shard lie in random order on disk: a smaller part costs as much to decode.
    """
    before = 0
    for split, num_sequences in text.parts:
        spec = caches[split].spec
        for first in range(0, num_sequences, spec.sequences_per_shard):
            count = min(spec.sequences_per_shard, num_sequences - first)
            numbers = np.arange(first * spec.rows_per_sequence, (first + count) * spec.rows_per_sequence)
            bits = caches[split].rows(hook, numbers, split=split)
            rows = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
            activations = torch.zeros(count, spec.context_length, spec.model.d_model)
            activations[:, spec.context_length - spec.rows_per_sequence :] = rows.reshape(
                count, spec.rows_per_sequence, -1
            )
            yield before + first, activations
        before += num_sequences


def _on(weights: SAEWeights, device: torch.device) -> SAEWeights:
    """The weights on a device."""
    moved = {
        name: tensor.to(device)
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "r_mag", "b_mag")
        if (tensor := getattr(weights, name)) is not None
    }
    return replace(weights, **moved)
