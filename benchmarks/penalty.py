"""Time and peak memory of the penalties with their gradients, against the F x F Gram matrix with autograd.

    python benchmarks/penalty.py [--d-model 640 --factors 1 4 16 --threads 2] [--json]

Times are taken in turns in one process, and ratios are medians over rounds. Peak memory is that of a process of its own
per contender, beyond what it held before the penalty was computed (on a GPU: what torch allocated). FLOPs by formula:
gram 4 F d min(F, d), the Gram matrix with autograd 6 F^2 d.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from store.sae.geometry import unit_rows
from train.penalties import GramPenalty, MaxCosinePenalty

OURS: dict[str, GramPenalty | MaxCosinePenalty] = {
    "gram": GramPenalty(kind="gram"),
    "max-cosine": MaxCosinePenalty(kind="max-cosine"),
    "max-cosine, chunks of 1024": MaxCosinePenalty(kind="max-cosine", chunk_latents=1024),
}


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-model", type=int, default=640)
    parser.add_argument("--factors", nargs="*", type=int, default=[1, 4, 16], help="F / d_model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="measure the memory of one contender, print bytes (used by the script itself)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.only is not None:
        print(peak_bytes(options.only, options.factors[0] * options.d_model, options.d_model, device))
        return
    from bench_rows import machine  # loads much, which the many processes that measure memory do without

    result: dict[str, Any] = {"machine": machine(options.device), "d_model": options.d_model, "sizes": []}
    print("  ".join(f"{name} {value}" for name, value in result["machine"].items()))
    print(f"{'F':>7}  {'penalty':<28}{'ms':>10}{'x faster':>10}{'MB':>9}{'naive ms':>11}{'naive MB':>10}")
    for factor in options.factors:
        result["sizes"].append(measure(factor, options, device))
    if options.json:
        print(json.dumps(result, sort_keys=True))


def measure(factor: int, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All contenders at one size."""
    from bench_rows import in_turns, repeated

    F, D = factor * options.d_model, options.d_model
    calls = {name: call(name, F, D, device) for name in [*OURS, *(f"naive {kind}" for kind in ("gram", "max-cosine"))]}
    seconds = in_turns(
        {name: repeated(evaluate) for name, evaluate in calls.items()},
        num_rounds=options.rounds,
        num_steps=1,
        device=device,
    )
    memory = {name: measured_apart(name, factor, options) for name in calls}
    found: dict[str, Any] = {"d_sae": F, "seconds": {n: min(s) for n, s in seconds.items()}, "peak_bytes": memory}
    found["times_faster"] = {}
    for name in OURS:
        naive = f"naive {name.split(',')[0]}"
        faster = statistics.median(a / b for a, b in zip(seconds[naive], seconds[name], strict=True))
        found["times_faster"][name] = faster
        print(
            f"{F:>7}  {name:<28}{1e3 * min(seconds[name]):>10.2f}{faster:>10.1f}{memory[name] / 1e6:>9.1f}"
            f"{1e3 * min(seconds[naive]):>11.1f}{memory[naive] / 1e6:>10.1f}"
        )
    found["flops_ratio_gram"] = 6.0 * F * F * D / (4.0 * F * D * min(F, D))
    return found


def call(name: str, num_latents: int, d_model: int, device: torch.device) -> Callable[[], object]:
    """One evaluation with gradient, at random directions."""
    W_dec = unit_rows(torch.randn(num_latents, d_model, generator=torch.Generator().manual_seed(0))).to(device)
    if name.startswith("naive"):
        return lambda: naive(name, W_dec)
    gradient, weight = torch.zeros_like(W_dec), torch.ones(1, device=device)
    return lambda: OURS[name].add_gradients_(W_dec[None], gradient[None], weight_V=weight, unit=True, seeds=[0], step=0)


def naive(name: str, W_dec: Tensor) -> Tensor:
    """The definition, F x F, with torch's autograd."""
    leaf = W_dec.detach().requires_grad_()
    U = torch.nn.functional.normalize(leaf, dim=1)
    gram = U @ U.T
    if name == "naive gram":
        loss = (gram - torch.eye(len(U), device=U.device)).square().sum()
    else:
        loss = gram.fill_diagonal_(-2.0).amax(dim=1).square().mean()
    return torch.autograd.grad(loss, leaf)[0]


def measured_apart(name: str, factor: int, options: argparse.Namespace) -> int:
    """Peak bytes of a contender in a process of its own."""
    command = [
        sys.executable, str(Path(__file__)), "--only", name, "--d-model", str(options.d_model),
        "--factors", str(factor), "--threads", str(options.threads), "--device", options.device,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def peak_bytes(name: str, num_latents: int, d_model: int, device: torch.device) -> int:
    """What the second evaluation of a contender takes beyond its inputs; the first, small one loads what is lazy."""
    call(name, 64, 32, device)()
    evaluate = call(name, num_latents, d_model, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        evaluate()
        return torch.cuda.max_memory_allocated(device) - before
    before = reset_peak()
    evaluate()
    return status_bytes("VmHWM") - before


def reset_peak() -> int:
    """Makes the process's peak of memory its present memory, in bytes (Linux only)."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def status_bytes(field: str) -> int:
    """A size from the kernel's account of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
