"""A small real cache, and settings to train on it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harvest.moments import shard_sums
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS
from store.identity import ModelIdentity
from store.write.writer import CacheWriter
from train.config import VARIANTS, TrainConfig, VariantConfig, VariantSettings, resolve

HOOK = "blocks.1.hook_resid_post"
D_MODEL = 16
NUM_ROWS = 1024


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products on one thread: the machine is shared, and the shapes are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_cache(folder: Path, *, seed: int = 0, outlier_factor: float = 1.0, hooks: tuple[str, ...] = (HOOK,)) -> Path:
    """1024 rows of 16 channels: a mean plus sparse positive combinations of 24 directions, longer than sqrt(16).

    One row in 32 is so many times as long as it would be. The rows of a second hook are those of the first, turned.
    """
    spec = CacheSpec(
        model=ModelIdentity(
            name="toy", revision=None, weights_sha256="w", tokenizer_sha256="t", d_model=D_MODEL, num_layers=2,
            vocab_size=50, bos_token_id=0,
        ),
        hooks=hooks,
        text={"kind": "random", "seed": seed},
        context_length=17,
        excluded_positions=("bos",),
        packing="none: random rows",
        held_out_fraction=0.1,
        compute_dtype="float32",
        forward_batch_sequences=4,
        sequences_per_chunk=4,
        chunks_per_shard=8,
        codec="bf16_planes_v1",
        harvest_version=1,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(24, D_MODEL, generator=generator)
    writer = CacheWriter(folder, spec, num_sequences=NUM_ROWS // 16, num_held_out_sequences=2)
    shards = [(split, shard) for split in SPLITS for shard in writer.missing_shards(split)]
    for split, shard in shards:
        num_sequences = writer.shard_sequences(shard, split)
        num_rows = num_sequences * 16
        present = torch.rand(num_rows, 24, generator=generator) < 0.15
        strengths = present * torch.rand(num_rows, 24, generator=generator)
        wide = 7.0 * (strengths @ directions) + 5.0
        wide[::32] *= outlier_factor
        rows = wide.to(torch.bfloat16)
        tokens = torch.randint(1, 50, (num_sequences, 17), generator=generator).numpy().astype(np.uint32)
        tokens[:, 0] = 0
        bits = rows.view(torch.uint16).numpy()
        by_hook = {hook: np.roll(bits, place, axis=1) for place, hook in enumerate(hooks)}
        sums = {
            hook: shard_sums(values, hook=hook, first_sequence=0, rows_per_sequence=16)
            for hook, values in by_hook.items()
        }
        writer.submit_shard(shard, split=split, tokens=tokens, rows=by_hook, sums=sums).result()
    writer.finish()
    writer.close()
    return folder


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("cache") / "activations")


SETTINGS: dict[str, Any] = {
    "hook": HOOK,
    "architecture": {"kind": "relu"},
    "d_sae": 24,
    "batch_rows": 64,
    "num_epochs": 2,
    "pool_bytes": 16384,
    "lr": 3.0e-3,
    "lr_warm_up_fraction": 0.1,
    "lr_decay_fraction": 0.2,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_eps": 1.0e-8,
    "gradient_clip": None,
    "l1": 0.5,
    "sparsity_warm_up_fraction": 0.0,
    "decoder_norm": "unit",
    "dead_latents": {"kind": "none"},
    "seed": 0,
    "penalty": {"kind": "gram"},
    "penalty_scale": "sum",
    "lambda_regularizer": 0.1,
    "lambda_lr": None,
    "dead_after_rows": 512,
    "log_every_steps": 5,
}
FIVE: dict[str, Any] = {
    "baseline": {"lambda": {"kind": "fixed", "value": 0.0}},
    "fixed-1": {"lambda": {"kind": "fixed", "value": 1.0}},
    "adaptive": {"lambda": {"kind": "learned", "start": 1.0}},
    "schedule-0p1-10": {"lambda": {"kind": "linear", "start": 0.1, "end": 10.0}},
    "adaptive-high": {"lambda": {"kind": "learned", "start": 10.0}},
}


@pytest.fixture
def settings() -> dict[str, Any]:
    """A complete `train` section, to be changed by the test."""
    return dict(SETTINGS)


@pytest.fixture
def resolved() -> Callable[..., VariantSettings]:
    """Every setting of one variant: resolved(lam={...}, l1=...), lambda 0 where it is not given."""

    def make(lam: dict[str, Any] | None = None, **changes: Any) -> VariantSettings:  # noqa: ANN401
        variant = VariantConfig.model_validate({"lambda": lam or {"kind": "fixed", "value": 0.0}})
        return resolve(TrainConfig.model_validate({**SETTINGS, **changes}), variant)

    return make


@pytest.fixture
def section() -> dict[str, Any]:
    """The `variants` section with the five variants of the study, to be changed by the test."""
    return dict(FIVE)


@pytest.fixture
def five() -> dict[str, VariantConfig]:
    """The five variants of the study, parsed."""
    return VARIANTS.validate_python(FIVE)


@pytest.fixture
def train_files(cache_folder: Path, tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """Runs the stage into tmp_path/models and returns every file's bytes by path."""
    from train.run import run
    from train.task import TrainingResources

    def train(
        variants: dict[str, VariantConfig],
        *,
        reuse: bool = False,
        resources: TrainingResources | None = None,
        budget_bytes: int | None = None,
        **changes: Any,  # noqa: ANN401 - settings of every type
    ) -> dict[str, bytes]:
        config = TrainConfig.model_validate({**SETTINGS, **changes})
        run(
            config,
            variants,
            cache=cache_folder,
            output=tmp_path / "models",
            scratch=tmp_path / "scratch",
            resources=resources or TrainingResources(device="cpu", num_threads=1),
            reuse=reuse,
            budget_bytes=budget_bytes,
        )
        return files_below(tmp_path / "models")

    return train


@pytest.fixture(scope="session")
def cache_at() -> Callable[..., Path]:
    """Writes another cache: cache_at(folder, seed=...)."""
    return write_cache


@pytest.fixture
def files_of() -> Callable[[Path], dict[str, bytes]]:
    """Every file's bytes below a folder, by path."""
    return files_below


def files_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
