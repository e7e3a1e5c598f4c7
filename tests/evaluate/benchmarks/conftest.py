"""What benchmarks need besides a study: contexts on language models that are made by hand."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evaluate.benchmarks.benchmark import EvaluatedSAE, Measurement
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.registry import BENCHMARKS, check_measurement
from evaluate.isolation import undisturbed
from evaluate.kept import KeptSetUps
from language_model.config import LanguageModelConfig
from language_model.load import identify
from store.cache.manifest import Manifest
from store.cache.spec import CacheSpec
from store.read.cache import ActivationCache
from store.record import Record
from store.sae.artefact import load_sae
from store.sae.weights import SAEWeights
from tests.evaluate.conftest import save

CPU = torch.device("cpu")
FIRST = "blocks.0.hook_resid_post"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """context(folder, name): of a checkpoint under a name; sae(context, weights): one that was trained on it;
    measured(context, config, sae): set up and measured as a run does."""

    def context(
        folder: Path, name: str | None = None, *, compute_dtype: str = "float32", kept: Path | None = None
    ) -> BenchmarkContext:
        identity = identify(folder, name=name or str(folder), revision=None)
        if name is not None:  # the one substitution: no hub has it
            monkeypatch.setattr("language_model.load.resolve", lambda *_: folder)
        spec = CacheSpec(
            model=identity, hooks=(FIRST,), text={"kind": "files", "digest": "ab" * 32}, context_length=12,
            excluded_positions=("bos",), packing="none, for tests", held_out_fraction=0.5, compute_dtype=compute_dtype,
            forward_batch_sequences=4, sequences_per_chunk=2, chunks_per_shard=4, codec="bf16_planes_v1",
            harvest_version=1,
        )  # fmt: skip
        return BenchmarkContext(
            place=tmp_path,
            manifest=Manifest.model_construct(spec=spec),
            model=LanguageModelConfig(name=name or str(folder), revision=None, compute_dtype=compute_dtype),
            cards={},
            held_out=np.empty((0, 12), dtype=np.uint32),
            kept=KeptSetUps(kept or tmp_path / "set-ups", budget_bytes=2**30),
            device=CPU,
        )

    def sae(context: BenchmarkContext, weights: SAEWeights, name: str = "tested") -> EvaluatedSAE:
        spec = context.manifest.spec
        study = SimpleNamespace(models=tmp_path / "models", manifest=SimpleNamespace(spec=spec, digest="0" * 64))
        save(study, name, weights, hook=FIRST)
        loaded, card = load_sae(study.models / name)
        context.cards[name] = card
        return EvaluatedSAE(name, loaded, card)

    return SimpleNamespace(context=context, sae=sae, measured=measured)


def measured(name: str, config: Record, context: BenchmarkContext, sae: EvaluatedSAE) -> Measurement:
    """Sets up and measures one SAE, as a run does."""
    benchmark = BENCHMARKS[name]
    assert benchmark.not_run(config, context) is None
    with undisturbed(seed=0):
        shared = benchmark.prepare(config, context)
    with undisturbed(seed=0):
        measurement = benchmark.measure(sae, config, context, shared)
    check_measurement(benchmark, measurement)
    return measurement


@pytest.fixture
def study_context(study: SimpleNamespace) -> BenchmarkContext:
    """What benchmarks may use in the study."""
    return BenchmarkContext(
        place=study.cache, manifest=study.manifest, model=study.model, cards={},
        held_out=ActivationCache(study.cache).held_out_tokens(),
        kept=KeptSetUps(study.root / "set-ups", budget_bytes=2**30), device=CPU,
    )  # fmt: skip


@pytest.fixture
def study_sae(
    study: SimpleNamespace, study_context: BenchmarkContext, add_sae: Callable[..., None]
) -> Callable[[SAEWeights], EvaluatedSAE]:
    """An SAE of the study with these weights."""

    def add(weights: SAEWeights, **changes: Any) -> EvaluatedSAE:  # noqa: ANN401 - fields of the card
        add_sae("tested", weights, **changes)
        loaded, card = load_sae(study.models / "tested")
        study_context.cards["tested"] = card
        return EvaluatedSAE("tested", loaded, card)

    return add
