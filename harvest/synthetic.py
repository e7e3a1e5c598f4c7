"""Activations made from known features, in the places of a text and of a language model in a harvest.

A token is the number of a sample, and a sequence holds consecutive numbers. The rows of a sequence are a function of
settings and numbers alone: so resumed, repaired and cluster harvests give the same bytes.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from compute.code_version import tell_if_edited
from harvest.config import HarvestConfig
from harvest.streams import Tokens
from harvest.synthetic_config import SyntheticConfig
from harvest.version import HARVEST_VERSION
from harvest.worlds import KIND, World, identity_of, make_worlds
from store.cache.spec import CacheSpec
from store.cache.split import Split
from store.cache.truth import Truth, packed, truth_bytes
from store.errors import MismatchedCache
from store.record import plain

FIRST_HELD_OUT: Final = 2**31
"""Number of the first held-out sample; training samples have smaller ones."""
NUM_MEASURED: Final = 2**17
"""Samples on which the firing of features is measured, whatever the budget."""
_PORTION: Final = 2**12
"""Of them, drawn at once."""


@dataclass(frozen=True)
class SyntheticModel:
    """What gives rows for token windows, as a language model does."""

    hooks: dict[str, World]
    """By name, those that are asked for."""
    layers: tuple[torch.nn.Module, ...] = ()
    """None: a batch takes no time."""

    @property
    def num_bytes(self) -> int:
        """Of the directions."""
        return sum(world.directions.nbytes for world in self.hooks.values())

    def states(self, tokens: Tensor) -> dict[str, Tensor]:
        """The activations (B, C, d) at each hook of the samples with the numbers `tokens` (B, C) int64."""
        length = tokens.shape[1]
        firsts = tokens[:, 0].tolist()
        return {
            hook: torch.stack([world.rows(first, length) for first in firsts]) for hook, world in self.hooks.items()
        }


class SampleNumbers(AbstractContextManager["SampleNumbers"]):
    """The numbers of the samples by shard, in the place of the token windows of a text."""

    def __init__(self, spec: CacheSpec, *, num_sequences: int, num_held_out_sequences: int) -> None:
        self._spec = spec
        self._num_windows: dict[Split, int] = {"training": num_sequences, "held_out": num_held_out_sequences}

    def __exit__(self, *_error: object) -> None:
        pass

    def start(self) -> None:
        """There is nothing to be packed."""

    def check(self) -> None:
        """Nothing can fail."""

    def account(self) -> None:
        """There is no text of which something could become."""

    def origin(self, split: Split, shard: int, window: int, position: int) -> None:
        """A sample is of no document."""

    def shard(self, split: Split, shard: int, *, check: Callable[[], object] = lambda: None) -> Tokens:
        """The numbers (sequences, context_length) of a shard."""
        check()
        return sample_numbers(self._spec, split, shard, num_sequences=self._num_windows[split])


def sample_numbers(spec: CacheSpec, split: Split, shard: int, *, num_sequences: int) -> Tokens:
    """The numbers (sequences, context_length) of a shard's samples, where the split has `num_sequences`."""
    first = shard * spec.sequences_per_shard
    last = min(first + spec.sequences_per_shard, num_sequences)
    numbers = np.arange(first * spec.context_length, last * spec.context_length, dtype=np.int64)
    numbers += FIRST_HELD_OUT if split == "held_out" else 0
    return numbers.reshape(-1, spec.context_length).astype(np.uint32)


def synthetic_spec(config: HarvestConfig) -> CacheSpec:
    """The spec of the cache of these settings, of which `synthetic` is one."""
    assert config.synthetic is not None
    identity = identity_of(config.synthetic, make_worlds(config.synthetic))
    sequences_per_chunk, chunks_per_shard = config.chunking(d_model=identity.d_model)
    lineage: dict[str, Any] = {"kind": KIND, "settings": plain(config.synthetic)}
    tell_if_edited(HARVEST_VERSION, stage="harvest", where="harvest/version.py")
    if (edited := HARVEST_VERSION.edited()) is not None:
        lineage["edited_harvest_code"] = edited
    return CacheSpec(
        model=identity,
        hooks=config.hooks,
        text=lineage,
        context_length=config.context_length,
        excluded_positions=(),
        packing="tokens are numbers of samples, each sequence drawn at once",
        held_out_fraction=0.0,
        compute_dtype="float64",
        forward_batch_sequences=config.forward_batch_sequences,
        sequences_per_chunk=sequences_per_chunk,
        chunks_per_shard=chunks_per_shard,
        codec=config.codec,
        harvest_version=HARVEST_VERSION.number,
        first_token="text",
    )


def load_synthetic(spec: CacheSpec, hooks: Sequence[str]) -> SyntheticModel:
    """The worlds of some hooks of a spec.

    Raises:
        MismatchedCache: this machine makes other directions from the settings than the one that wrote the spec.
    """
    try:
        config = SyntheticConfig.model_validate(spec.text["settings"])
    except (KeyError, ValidationError) as error:
        raise MismatchedCache(
            f"expected the settings of known features in the spec of the cache, got {error}"
        ) from error
    worlds = make_worlds(config)
    found = identity_of(config, worlds)
    if found != spec.model:
        raise MismatchedCache(
            f"expected features with the digest {spec.model.weights_sha256[:12]}, this machine makes others from the "
            f"same settings, {found.weights_sha256[:12]}: its processor or libraries round otherwise. Harvest on "
            "machines of one kind"
        )
    return SyntheticModel({hook: worlds[hook] for hook in hooks})


def truth_files(spec: CacheSpec, *, num_held_out_sequences: int) -> dict[str, bytes]:
    """By hook: its features, how often they fire, and which are on in the held-out rows; see store/cache/truth.py."""
    truth = {}
    for hook, world in load_synthetic(spec, spec.hooks).hooks.items():
        length = spec.context_length
        measured = [world.magnitudes(first, _PORTION) > 0 for first in range(0, NUM_MEASURED, _PORTION)]
        counts = sum(fires.sum(dim=0).double() for fires in measured)
        assert isinstance(counts, Tensor)
        held_out = [
            world.magnitudes(FIRST_HELD_OUT + number * length, length) > 0 for number in range(num_held_out_sequences)
        ]
        truth[hook] = truth_bytes(
            Truth(
                directions=world.directions.float().numpy(),
                frequencies=(counts / NUM_MEASURED).numpy(),
                parents=world.parents,
                held_out_firing=packed(torch.cat(held_out).numpy()),
            )
        )
    return truth
