"""What benchmarks share: the cache, the language model, what is kept between SAEs and between runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from evaluate.judge.limits import JudgeLimits
from store.errors import MismatchedCache
from store.identity import how_identified

if TYPE_CHECKING:
    from evaluate.kept import KeptSetUps
    from evaluate.loaded_model import LoadedModel
    from language_model.config import LanguageModelConfig
    from store.cache.manifest import Manifest
    from store.files.open import Place
    from store.read.cache import ActivationCache
    from store.sae.artefact import SAECard


def no_progress(steps: int = 1) -> object:
    """Counts nothing."""
    return steps


@dataclass(frozen=True)
class BenchmarkContext:
    """What a benchmark may use besides the SAE. Nothing is loaded before it is asked for, and each thing once."""

    place: "Place"
    """The activation cache: manifest, and held-out tokens and rows where they are there."""
    manifest: "Manifest"
    model: "LanguageModelConfig | None"
    """None where activations were made from known features."""
    cards: "Mapping[str, SAECard]"
    """The SAEs of this run."""
    held_out: NDArray[np.uint32]
    """As many held-out sequences as the benchmark reads, (sequences, context)."""
    kept: "KeptSetUps"
    """What is computed once and kept on disk."""
    device: torch.device
    judge_limits: JudgeLimits = field(default_factory=JudgeLimits)
    """What a judge may cost."""
    progress: Callable[[int], object] = no_progress
    """Called with a number of steps that are done."""
    models_folder: Path = Path("models")
    """Where the SAEs are, a folder each: for a benchmark that reads rows once for all of them."""

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hooks of the SAEs of this run, each once."""
        return tuple(dict.fromkeys(card.hook for card in self.cards.values()))

    @cached_property
    def model_folder(self) -> Path:
        """The checkpoint of the cache's language model on this machine; nothing is loaded.

        Raises:
            MismatchedCache: the settings name another language model than the one of the cache.
        """
        from language_model.load import identify, resolve

        if self.model is None:
            raise MismatchedCache(
                f"expected a language model, as the cache was made with {self.manifest.spec.model.name}, got "
                "language_model null. Name it in params.yaml"
            )
        folder = resolve(self.model.name, self.model.revision)
        identity = identify(folder, name=self.model.name, revision=self.model.revision)
        wanted = self.manifest.spec.model
        if identity.identifying() != wanted.identifying():
            raise MismatchedCache(
                f"expected the language model of the activation cache, {wanted.name} with weights "
                f"{wanted.weights_sha256[:12]}, got {identity.name} with weights {identity.weights_sha256[:12]} in "
                f"{folder}. Harvest with this language model, or evaluate with that one{how_identified(wanted)}"
            )
        return folder

    @cached_property
    def language_model(self) -> "LoadedModel":
        """The language model that the cache was made with, in the number format that it ran in then."""
        from evaluate.loaded_model import LoadedModel

        dtype = getattr(torch, self.manifest.spec.compute_dtype)
        return LoadedModel(self.model_folder, name=self.manifest.spec.model.name, dtype=dtype, device=self.device)

    @property
    def ignored_token_ids(self) -> frozenset[int]:
        """Tokens whose rows never count, such as padding; none where tokens are numbers of samples."""
        if self.manifest.spec.is_synthetic:
            return frozenset()
        return frozenset(self.language_model.ignored_token_ids)

    @cached_property
    def held_out_cache(self) -> "ActivationCache":
        """The cache, for its held-out rows; the files of its training rows may be missing."""
        from store.read.cache import ActivationCache

        return ActivationCache(self.place, splits=("held_out",))
