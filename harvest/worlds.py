"""Known features and how they fire, made with sae_lens.synthetic; every sample is a function of seed, world and number.

Three things of that library need care. It draws samples from torch's global generator: here that is forked around
every draw, and seeded. torch uses 32 bits of a seed: samples of different numbers get different ones. And it draws
directions as an SAE's weights are drawn, so that equal seeds would start the SAE at the answer: here they come from
another kind of generator (numpy's PCG64), and no seed of torch gives them.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harvest.synthetic_config import PREFIX, SyntheticConfig
from harvest.synthetic_config import World as WorldConfig
from store.identity import IDENTIFIED_BY_TENSORS, ModelIdentity

KIND: Final = "synthetic"


@dataclass(frozen=True)
class World:
    """One world, ready to be sampled."""

    directions: Tensor
    """(N, d) float64, unit rows, exactly as float32 holds them."""
    parents: NDArray[np.int64]
    """(N,), -1 for none."""
    generator: Any
    """sae_lens.synthetic.ActivationGenerator, which has no types."""
    first_seed: int
    """Of sample 0."""

    def magnitudes(self, first: int, count: int) -> Tensor:
        """Samples (count, N) float32 of the numbers from `first` on, zero where a feature is off.

        They are drawn together: the same numbers in other portions are other samples.
        """
        with _seeded((self.first_seed + first) % 2**32):
            drawn: Tensor = self.generator.sample(count)
        return drawn

    def rows(self, first: int, count: int) -> Tensor:
        """Activations (count, d) float64 of those samples; in float64, so that no thread count changes a stored bit."""
        return self.magnitudes(first, count).double() @ self.directions


def make_worlds(config: SyntheticConfig) -> dict[str, World]:
    """All worlds, by hook."""
    with _one_thread(), _seeded(0):  # the library draws directions, which are then replaced
        return {PREFIX + name: _world(config, name, world) for name, world in config.worlds.items()}


def identity_of(config: SyntheticConfig, worlds: dict[str, World]) -> ModelIdentity:
    """What stands in the place of a language model's identity: the features of all worlds, by digest."""
    return ModelIdentity(
        name=KIND,
        revision=None,
        weights_sha256=_worlds_digest(worlds) + IDENTIFIED_BY_TENSORS,
        tokenizer_sha256="none",
        d_model=config.d_model,
        num_layers=0,
        vocab_size=2**32,
        bos_token_id=None,
    )


def _worlds_digest(worlds: dict[str, World]) -> str:
    """SHA-256 (hex) over directions, parents and firing of all worlds: what they are, whatever made them."""
    running = hashlib.sha256()
    for hook, world in sorted(worlds.items()):
        generator = world.generator
        correlation = generator.low_rank_correlation or ()
        running.update(f"{hook} {world.first_seed}\n".encode())
        for tensor in (
            world.directions, torch.from_numpy(world.parents), generator.firing_probabilities,
            generator.mean_firing_magnitudes, generator.std_firing_magnitudes, *correlation,
        ):  # fmt: skip
            running.update(f"{list(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    return running.hexdigest()


def _world(config: SyntheticConfig, name: str, settings: WorldConfig) -> World:
    from sae_lens.synthetic import (  # takes seconds
        ActivationGenerator,
        FeatureDictionary,
        generate_random_low_rank_correlation_matrix,
        orthogonalize_embeddings,
        zipfian_firing_probabilities,
    )

    number = config.num_features
    drawn = np.random.Generator(np.random.PCG64(_derived(config.seed, name, "directions")))
    random_directions = torch.from_numpy(drawn.standard_normal((number, config.d_model), dtype=np.float32))

    def place(dictionary: Any) -> None:  # noqa: ANN401 - sae_lens has no types
        unit = torch.nn.functional.normalize(random_directions, dim=1)
        if settings.orthogonalization_steps:
            with torch.enable_grad():  # it descends; whoever called may have switched gradients off for the process
                unit = orthogonalize_embeddings(unit, num_steps=settings.orthogonalization_steps)
        dictionary.feature_vectors.data = unit

    dictionary = FeatureDictionary(number, config.d_model, initializer=place)
    probabilities = zipfian_firing_probabilities(
        number, settings.zipf_exponent, settings.max_probability, settings.min_probability
    )
    modifier, parents = None, np.full(number, -1, dtype=np.int64)
    if settings.hierarchy is not None:
        hierarchy = _hierarchy(config, name, settings)
        modifier, parents = hierarchy.modifier, _parents(hierarchy.roots, number)
        # Features are numbered from the roots down, so that none fires more often than its parent.
        probabilities = (probabilities * hierarchy.compute_probability_correction_factors(probabilities)).clamp(max=1)
    correlation = None
    if settings.correlation is not None:
        seed = _derived(config.seed, name, "correlation")
        correlation = generate_random_low_rank_correlation_matrix(
            number, settings.correlation.rank, settings.correlation.scale, seed=seed
        )
    generator = ActivationGenerator(
        number,
        probabilities,
        std_firing_magnitudes=config.magnitude_deviation,
        mean_firing_magnitudes=config.mean_magnitude,
        modify_activations=modifier,
        correlation_matrix=correlation,
    )
    directions = dictionary.feature_vectors.detach().double()
    return World(directions, parents, generator, first_seed=_derived(config.seed, name, "samples"))


def _hierarchy(config: SyntheticConfig, name: str, settings: WorldConfig) -> Any:  # noqa: ANN401 - sae_lens has no types
    from sae_lens.synthetic import HierarchyConfig, generate_hierarchy

    forest = settings.hierarchy
    assert forest is not None
    wanted = HierarchyConfig(
        total_root_nodes=forest.num_roots,
        branching_factor=forest.num_children,
        max_depth=forest.depth,
        mutually_exclusive_portion=forest.exclusive_share,
        compensate_probabilities=True,
    )
    return generate_hierarchy(config.num_features, wanted, seed=_derived(config.seed, name, "hierarchy"))


def _parents(roots: Any, num_features: int) -> NDArray[np.int64]:  # noqa: ANN401 - nodes of sae_lens
    parents = np.full(num_features, -1, dtype=np.int64)
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        for child in node.children:
            parents[child.feature_index] = node.feature_index
            waiting.append(child)
    return parents


def _derived(seed: int, world: str, use: str) -> int:
    """A seed of 32 bits for one use in one world."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{world}\0{use}".encode()).digest()[:4], "big")


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's global generator with a seed; afterwards as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """So that directions are the same to the bit however many threads there are."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(number)
