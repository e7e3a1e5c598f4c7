"""What the benchmarks share: rows to train on, settings, the machine, and fair turns."""

import json
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from store.manifest import CacheSpec, ModelIdentity, ShardSums
from store.reader import ActivationCache
from store.writer import CacheWriter
from train.config import TrainConfig, VariantConfig, VariantSettings, resolve

HOOK = "rows"
GEMM_SIZE = 2048
_CONTEXT = 129  # 128 rows per sequence


def open_cache(folder: Path | None, npy: Path | None, scratch: Path) -> tuple[ActivationCache, str]:
    """A cache and its hook: the one in `folder`, or one written to `scratch` from the rows of an .npy file."""
    if npy is None:
        cache = ActivationCache(folder or Path("data/activations"))
        return cache, cache.manifest.spec.hooks[0]
    rows = np.load(npy, mmap_mode="r")
    if rows.ndim != 2:
        raise SystemExit(f"expected rows (N, d_model) in {npy}, got shape {rows.shape}")
    write_cache(scratch, rows)
    return ActivationCache(scratch), HOOK


def write_cache(folder: Path, rows: NDArray[Any]) -> None:
    """Stores rows (N, d), uint16 bit patterns of bfloat16 or floats, as a cache of our format."""
    per_sequence = _CONTEXT - 1
    spec = CacheSpec(
        model=ModelIdentity(
            name="rows", revision=None, weights_sha256="-", tokenizer_sha256="-", d_model=rows.shape[1], num_layers=1,
            vocab_size=2, bos_token_id=0,
        ),
        hooks=(HOOK,),
        text={"kind": "rows"},
        context_length=_CONTEXT,
        excluded_positions=("bos",),
        packing="none",
        held_out_fraction=0.5,
        compute_dtype="bfloat16",
        forward_batch_sequences=16,
        sequences_per_chunk=16,
        chunks_per_shard=8,
        codec="bf16_planes_v1",
        harvest_version=1,
    )  # fmt: skip
    writer = CacheWriter(folder, spec, num_sequences=len(rows) // per_sequence)
    for shard in writer.missing_shards():
        count = writer.shard_sequences(shard)
        start = shard * spec.sequences_per_shard * per_sequence
        bits = as_bits(np.asarray(rows[start : start + count * per_sequence]))
        exact = torch.from_numpy(bits).view(torch.bfloat16).to(torch.float64)
        sums = ShardSums(num_rows=len(bits), sum=exact.sum(0).tolist(), sum_of_squares=exact.square().sum(0).tolist())
        tokens = np.ones((count, _CONTEXT), dtype=np.uint32)
        writer.write_shard(shard, tokens=tokens, rows={HOOK: bits}, sums={HOOK: sums})
    writer.write_held_out(np.ones((1, _CONTEXT), dtype=np.uint32))
    writer.finish()


def as_bits(rows: NDArray[Any]) -> NDArray[np.uint16]:
    """bfloat16 bit patterns of rows."""
    if rows.dtype == np.uint16:
        return np.ascontiguousarray(rows)
    return torch.from_numpy(rows.astype(np.float32)).to(torch.bfloat16).view(torch.uint16).numpy()


def settings_of(lam: Mapping[str, Any] | None = None, **changes: Any) -> VariantSettings:  # noqa: ANN401
    """One variant: the usual settings, with changes."""
    usual: dict[str, Any] = {
        "hook": HOOK, "architecture": {"kind": "relu"}, "d_sae": 2, "batch_rows": 1, "num_epochs": 1, "pool_bytes": 1,
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


def machine(device: str, **more: object) -> dict[str, Any]:
    """What the figures belong to."""
    cpu = platform.processor() or "unknown CPU"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = f"{names[0]}, {len(names)} cores" if names else cpu
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "hardware": torch.cuda.get_device_name() if device.startswith("cuda") else cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "sae_lens": version("sae-lens"),
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "none",
        **more,
    }


def finish(result: dict[str, Any], *, as_json: bool) -> None:
    """One JSON object as the last line, if asked for."""
    if as_json:
        print(json.dumps(result, sort_keys=True))
