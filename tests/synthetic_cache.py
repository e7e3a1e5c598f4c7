"""A small cache of activations made from known features: 16 channels, 24 features, three worlds."""

from pathlib import Path
from typing import Any

from harvest.config import HarvestConfig
from harvest.dispatch import HarvestResources
from harvest.run import run
from store.cache.manifest import Manifest

FIRING = {"zipf_exponent": 0.5, "max_probability": 0.4, "min_probability": 0.05}
WORLDS = {
    "orthogonal": {"orthogonalization_steps": 50, **FIRING},
    "correlated": {"orthogonalization_steps": 0, **FIRING, "correlation": {"rank": 4, "scale": 0.25}},
    "hierarchy": {
        "orthogonalization_steps": 50, **FIRING, "hierarchy": {"num_roots": 3, "num_children": 2, "depth": 2},
    },
}  # fmt: skip
HOOKS = tuple(f"synthetic.{name}" for name in WORLDS)


def synthetic_settings() -> dict[str, Any]:
    """Settings of a harvest as they stand in params.yaml: 20 training and 6 held-out sequences of 64 samples."""
    return {
        "text": None,
        "synthetic": {
            "d_model": 16,
            "num_features": 24,
            "mean_magnitude": 1.0,
            "magnitude_deviation": 0.15,
            "seed": 0,
            "worlds": WORLDS,
        },
        "hooks": list(HOOKS),
        "num_rows": 20 * 64,
        "num_held_out_sequences": 6,
        "held_out_fraction": None,
        "context_length": 64,
        "first_token": "text",
        "num_positions_left_out": 0,
        "forward_batch_sequences": 2,
        "sequences_per_chunk": 2,
        "chunks_per_shard": 4,
        "codec": "bf16_planes_v1",
    }


def harvest_synthetic(
    folder: Path,
    *,
    resources: HarvestResources | None = None,
    reuse: bool = True,
    **changes: Any,  # noqa: ANN401 - settings of any type
) -> Manifest:
    """Harvests into `folder`/activations."""
    manifest = run(
        HarvestConfig.model_validate(synthetic_settings() | changes),
        model=None,
        output=folder / "activations",
        scratch=folder / "scratch",
        resources=resources or HarvestResources("cpu"),
        reuse=reuse,
    )
    assert manifest is not None
    return manifest
