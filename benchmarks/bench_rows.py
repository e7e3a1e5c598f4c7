"""What the benchmarks of training share: a cache to train from, settings, the machine, and fair turns."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bench
import numpy as np
import torch

from store.read.cache import ActivationCache
from train.config import TrainConfig, VariantConfig, VariantSettings, resolve

GEMM_SIZE = 2048


def open_cache(folder: Path | None, npy: Path | None, scratch: Path) -> tuple[ActivationCache, str]:
    """A cache and its hook: the one in `folder`, or one written to `scratch` from the rows of an .npy file."""
    if npy is None:
        cache = ActivationCache(folder or Path("data/activations"))
        return cache, cache.manifest.spec.hooks[0]
    rows = np.load(npy, mmap_mode="r")
    if rows.ndim != 2 or rows.dtype != np.uint16:
        raise SystemExit(f"expected uint16 (rows, d_model) in {npy}, got {rows.dtype} of shape {rows.shape}")
    bench.write_cache(scratch, rows)
    return ActivationCache(scratch), bench.HOOK


def settings_of(lam: Mapping[str, Any] | None = None, **changes: Any) -> VariantSettings:  # noqa: ANN401
    """One variant: the usual settings, with changes."""
    usual: dict[str, Any] = {
        "hook": "rows", "architecture": {"kind": "relu"}, "d_sae": 2, "batch_rows": 1, "num_epochs": 1, "pool_bytes": 1,
        "lr": 3e-4, "lr_warm_up_fraction": 0.0, "lr_decay_fraction": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999,
        "adam_eps": 1e-8, "gradient_clip": None, "l1": 1.5, "sparsity_warm_up_fraction": 0.0, "decoder_norm": "unit",
        "dead_latents": {"kind": "none"}, "dead_after_rows": 10**7, "seed": 0, "penalty": {"kind": "gram"},
        "penalty_scale": "sum", "lambda_regularizer": 0.1, "lambda_lr": None, "log_every_steps": 100,
    }  # fmt: skip
    variant = VariantConfig.model_validate({"lambda": dict(lam or {"kind": "fixed", "value": 0.0})})
    return resolve(TrainConfig.model_validate(usual | changes), variant)


def gemm(device: torch.device) -> Callable[[], object]:
    """One square product in the dtype of the step's products, 2 * GEMM_SIZE^3 FLOPs."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b, out = (torch.ones(GEMM_SIZE, GEMM_SIZE, dtype=dtype, device=device) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def in_turns(
    contenders: Mapping[str, Callable[[int], object]], *, num_rounds: int, num_steps: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds per step of each contender in each round: a step to warm up, then `num_steps` timed ones.

    A contender is given a number of steps, and takes them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(num_rounds):
        for name, take in contenders.items():
            take(1)
            synchronise(device)
            begin = time.perf_counter()
            take(num_steps)
            synchronise(device)
            seconds[name].append((time.perf_counter() - begin) / num_steps)
    return seconds


def repeated(step: Callable[[], object]) -> Callable[[int], object]:
    """A contender from one step."""
    return lambda num_steps: [step() for _ in range(num_steps)]


def synchronise(device: torch.device) -> None:
    """Waits for a GPU's queue; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: str) -> dict[str, str]:
    """What the figures belong to."""
    found = bench.machine("torch", "sae-lens") | {"threads": str(torch.get_num_threads())}
    return found | ({"hardware": torch.cuda.get_device_name()} if device.startswith("cuda") else {})
