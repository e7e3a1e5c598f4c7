"""The settings of activations that are made from known features: the features, and how they fire. Reads no file."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from store.record import Record

PREFIX = "synthetic."
"""A world is harvested as the hook of this name and the world's."""
Probability = Annotated[float, Field(gt=0, le=1)]
WorldName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,60}$")]


class Correlation(Record):
    """Features that fire together more, or less, often than by chance: a Gaussian copula of low rank."""

    rank: int = Field(gt=0, le=4096)
    scale: float = Field(gt=0, le=1)
    """Standard deviation of the factors' entries; the correlation of two features is about scale^2 sqrt(rank)."""


class Forest(Record):
    """Trees of features: a child is on only where its parent is."""

    num_roots: int = Field(gt=0, le=2**20)
    num_children: int = Field(ge=2, le=2**20)
    """Of every feature that is not at the greatest depth."""
    depth: int = Field(ge=1, le=16)
    """Of the deepest features; roots have 0."""
    exclusive_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the parents of which at most one child is on at a time."""


class World(Record):
    """One kind of truth: how directions lie to each other, and how features fire."""

    orthogonalization_steps: int = Field(ge=0, le=100_000)
    """Steps of gradient descent that make the directions as orthogonal as they can be; 0 leaves them random."""
    zipf_exponent: float = Field(gt=0, le=10)
    """How fast the probability of firing falls from feature to feature."""
    max_probability: Probability
    """Of the feature that fires most often."""
    min_probability: Probability
    """Of the one that fires least. Children in a hierarchy fire with their parents only, and are compensated for it."""
    correlation: Correlation | None = None
    """null: features fire independently of each other."""
    hierarchy: Forest | None = None
    """null: no feature depends on another."""

    @model_validator(mode="after")
    def check_probabilities(self) -> Self:
        if self.min_probability >= self.max_probability:
            raise ValueError(
                f"expected a min_probability below max_probability = {self.max_probability}, got "
                f"{self.min_probability}. Lower it"
            )
        return self


class SyntheticConfig(Record):
    """Activations x = sum of the directions of the features that are on, each with a magnitude. No language model."""

    d_model: int = Field(ge=2, le=2**20)
    """Channels of a row."""
    num_features: int = Field(ge=2, le=2**20)
    """In every world; more than d_model is superposition."""
    mean_magnitude: float = Field(gt=0, le=1e6)
    """Of a feature that is on."""
    magnitude_deviation: float = Field(ge=0, le=1e6)
    """Its standard deviation; a magnitude below zero counts as off."""
    seed: int = Field(ge=0, lt=2**63)
    """Of directions, firing and samples. No seed of `train` gives an SAE the directions of a world to begin with."""
    worlds: dict[WorldName, World] = Field(min_length=1)
    """By name. A world is harvested where `harvest.hooks` has synthetic.<name>."""

    @model_validator(mode="after")
    def check_forests(self) -> Self:
        for name, world in self.worlds.items():
            if world.hierarchy is not None and world.hierarchy.num_roots >= self.num_features:
                raise ValueError(
                    f"expected fewer roots in worlds.{name}.hierarchy than the {self.num_features} features, got "
                    f"{world.hierarchy.num_roots}: none would have a parent. Lower num_roots"
                )
        return self
