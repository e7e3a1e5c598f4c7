"""Sets up once what benchmarks share: the language model of the cache, and held-out text."""

import numpy as np
import torch
from numpy.typing import NDArray

from evaluate.benchmarks.context import BenchmarkContext
from language_model.config import LanguageModelConfig
from language_model.load import identify, load_bridge, resolve
from language_model.special_tokens import special_tokens
from store.cache.manifest import Manifest
from store.errors import MismatchedCache
from store.identity import how_identified


def set_up(
    model: LanguageModelConfig, manifest: Manifest, held_out: NDArray[np.uint32], device: torch.device
) -> BenchmarkContext:
    """Loads the language model that the cache was made with, in the dtype it ran in then.

    `held_out` are the sequences for the benchmark, (sequences, context).

    Raises:
        MismatchedCache: `model` is not the language model of the cache.
    """
    folder = resolve(model.name, model.revision)
    identity = identify(folder, name=model.name, revision=model.revision)
    if identity.identifying() != manifest.spec.model.identifying():
        raise MismatchedCache(
            f"expected the language model of the activation cache, {manifest.spec.model.name} with weights "
            f"{manifest.spec.model.weights_sha256[:12]}, got {identity.name} with weights "
            f"{identity.weights_sha256[:12]} in {folder}. Harvest with this language model, or evaluate with that one"
            f"{how_identified(manifest.spec.model)}"
        )
    bridge = load_bridge(folder, dtype=getattr(torch, manifest.spec.compute_dtype), device=str(device))
    return BenchmarkContext(
        bridge=bridge,
        tokens=held_out,
        ignored_token_ids=special_tokens(folder).ignored,
        device=device,
        on_batch=_no_progress,
    )


def _no_progress() -> object:
    return None
