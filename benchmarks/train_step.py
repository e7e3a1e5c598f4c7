"""Speed of the fused training step against SAELens's trainer looped over the SAEs, and against the machine's GEMM rate.

    python benchmarks/train_step.py [--d-model 192 --d-sae 384 --variants 5 --batch-rows 2048 --threads 2] [--json]

All three are measured in one process, in turns, on the same rows in memory. SAE-tokens/s = rows x SAEs per second; a
step's products are counted as 10 B d F floating point operations per SAE. Each figure is the best of the rounds:
other work on the machine only ever slows a round down.
"""

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.config import VARIANTS, TrainConfig
from train.reuse import resolve_variants
from train.run import Plan, make_group

GEMM_SIZE = 2048
STUDY = [
    {"kind": "fixed", "value": 0.0},
    {"kind": "fixed", "value": 1.0},
    {"kind": "learned", "start": 1.0},
    {"kind": "linear", "start": 0.1, "end": 10.0},
    {"kind": "learned", "start": 10.0},
]


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-model", type=int, default=192)
    parser.add_argument("--d-sae", type=int, default=384)
    parser.add_argument("--variants", type=int, default=5, help="number of SAEs trained together")
    parser.add_argument("--batch-rows", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7, help="turns; the best counts")
    parser.add_argument("--steps", type=int, default=3, help="steps per turn")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(
        d_model=options.d_model,
        d_sae=options.d_sae,
        num_variants=options.variants,
        batch_rows=options.batch_rows,
        device=torch.device(options.device),
        num_rounds=options.rounds,
        num_steps=options.steps,
    )
    result["threads"] = options.threads
    result["machine"] = machine(options.device)
    print_table(result)
    if options.json:
        print(json.dumps(result, sort_keys=True))


def measure(
    *,
    d_model: int,
    d_sae: int,
    num_variants: int,
    batch_rows: int,
    device: torch.device,
    num_rounds: int,
    num_steps: int,
) -> dict[str, Any]:
    """Seconds per step of each contender, best of the rounds, and what follows from them."""
    rows = torch.randn(batch_rows, d_model, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    bits = rows.view(torch.uint16).numpy()
    size = {"d_model": d_model, "d_sae": d_sae, "num_variants": num_variants, "batch_rows": batch_rows}
    plain = [STUDY[0]] * num_variants
    study = [STUDY[index % len(STUDY)] for index in range(num_variants)]
    contenders: dict[str, Callable[[], object]] = {
        "fused, plain": fused_step(bits, plain, device=device, **size),
        "fused, study": fused_step(bits, study, device=device, **size),
        "SAELens, looped": saelens_step(rows.to(device, torch.float32), device=device, **size),
        "GEMM": gemm(device),
    }
    best = {name: float("inf") for name in contenders}
    for _ in range(num_rounds):
        for name, step in contenders.items():
            step()
            begin = time.perf_counter()
            for _ in range(num_steps):
                step()
            synchronise(device)
            best[name] = min(best[name], (time.perf_counter() - begin) / num_steps)
    flops = 10.0 * batch_rows * d_model * d_sae * num_variants
    gemm_rate = 2.0 * GEMM_SIZE**3 / best.pop("GEMM")
    return {
        **size,
        "gemm_gflops": gemm_rate / 1e9,
        "seconds_per_step": best,
        "sae_tokens_per_second": {name: batch_rows * num_variants / seconds for name, seconds in best.items()},
        "share_of_gemm_rate": {name: flops / seconds / gemm_rate for name, seconds in best.items()},
    }


def fused_step(
    bits: NDArray[np.uint16],
    lambdas: list[dict[str, Any]],
    *,
    d_model: int,
    d_sae: int,
    num_variants: int,
    batch_rows: int,
    device: torch.device,
) -> Callable[[], object]:
    """One step of our group, from stored bit patterns to updated weights, without logging."""
    config = TrainConfig(
        hook="benchmark", d_sae=d_sae, batch_rows=batch_rows, num_epochs=1, pool_bytes=1, lr=3e-4,
        lr_warm_up_fraction=0.0, lr_decay_fraction=0.0, adam_beta1=0.9, adam_beta2=0.999, adam_eps=1e-8, l1=1.0, seed=0,
        penalty_scale="sum", lambda_regularizer=0.1, lambda_lr=None, dead_after_rows=100_000, log_every_steps=100,
    )  # fmt: skip
    section = {f"v{index}": {"lambda": kind} for index, kind in enumerate(lambdas)}
    variants = resolve_variants(config, VARIANTS.validate_python(section), cache_digest="none")
    plan = Plan(num_steps=1000, scale=1.0, mean=[0.0] * d_model, lambda_lr=0.01, penalty_divisor=1.0)
    group = make_group(config, variants, plan=plan, device=device)
    assert len(variants) == num_variants
    return lambda: group.step(bits, lr_factor=1.0)


def saelens_step(
    rows: torch.Tensor, *, d_model: int, d_sae: int, num_variants: int, batch_rows: int, device: torch.device
) -> Callable[[], object]:
    """One step of SAELens's own SAETrainer for each of its standard training SAEs, one after another, as it loops."""
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    def trainer() -> Any:  # noqa: ANN401 - a class of SAELens with many type parameters
        sae = StandardTrainingSAE(
            StandardTrainingSAEConfig(
                d_in=d_model, d_sae=d_sae, device=str(device), l1_coefficient=1.0, apply_b_dec_to_input=True
            )
        )
        config = SAETrainerConfig(
            total_training_samples=1000 * batch_rows,
            train_batch_size_samples=batch_rows,
            device=str(device),
            lr_end=3e-4,
        )
        return SAETrainer(cfg=config, sae=sae, data_provider=iter(()))

    trainers = [trainer() for _ in range(num_variants)]

    def step() -> None:
        for each in trainers:
            each.step(rows)
            each.n_training_steps += 1

    return step


def gemm(device: torch.device) -> Callable[[], object]:
    """One square product in the dtype of the step's products."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b, out = (torch.ones(GEMM_SIZE, GEMM_SIZE, dtype=dtype, device=device) for _ in range(3))
    return lambda: torch.mm(a, b, out=out)


def synchronise(device: torch.device) -> None:
    """Waits for a GPU's queue; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: str) -> dict[str, str]:
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
        "torch": torch.__version__,
        "sae_lens": version("sae-lens"),
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "none",
    }


def print_table(result: dict[str, Any]) -> None:
    """The figures, readable."""
    print("  ".join(f"{name} {value}" for name, value in result["machine"].items()))
    print(
        f"{result['num_variants']} SAEs, d_model {result['d_model']}, d_sae {result['d_sae']}, "
        f"{result['batch_rows']} rows, {result['threads']} threads; GEMM {result['gemm_gflops']:.0f} GFLOP/s"
    )
    print(f"{'step':<18}{'ms':>9}{'SAE-tokens/s':>15}{'of GEMM rate':>14}")
    for name, seconds in result["seconds_per_step"].items():
        rate, share = result["sae_tokens_per_second"][name], result["share_of_gemm_rate"][name]
        print(f"{name:<18}{1e3 * seconds:>9.1f}{rate:>15,.0f}{share:>14.0%}")


if __name__ == "__main__":
    main()
