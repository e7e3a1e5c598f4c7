"""The estimate of a group's memory against what a process really takes while it steps."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.conftest import SETTINGS
from train.config import TrainConfig, VariantConfig, VariantSettings, resolve
from train.group import make_group
from train.steps.make import group_bytes

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
V, F, D, B = 3, 512, 64, 1024
AUXK = {"kind": "auxk", "k": 32}
GROUPS: dict[str, dict[str, Any]] = {  # 30 to 70 MB: enough to be seen above what a process takes anyway
    "relu": {"batch_rows": 2048},
    "relu, few rows": {"d_sae": 2048, "batch_rows": 128},  # the cosines of the log record are the most
    "topk": {"architecture": {"kind": "topk", "k": 8}, "batch_rows": 2048},
    "batchtopk, auxk": {"architecture": {"kind": "batchtopk", "k": 8}, "dead_latents": AUXK},
    "jumprelu": {"architecture": {"kind": "jumprelu", "l0": 0.1}},
    "matryoshka-batchtopk, auxk": {
        "architecture": {"kind": "matryoshka-batchtopk", "k": 8, "widths": [64]}, "dead_latents": AUXK,
    },
    "gated": {"architecture": {"kind": "gated"}},
    "hypergradient": {"lambda": {"kind": "hypergradient", "start": 1.0}, "d_sae": 4096, "batch_rows": 64},
}  # fmt: skip


def settings_of(changes: dict[str, Any]) -> list[VariantSettings]:
    own = {"lambda": {"kind": "fixed", "value": 1.0}, **changes}
    variant = VariantConfig.model_validate({"lambda": own.pop("lambda")})
    shared = {**SETTINGS, "d_sae": F, "batch_rows": B, "dead_after_rows": 1, **own}
    return [resolve(TrainConfig.model_validate({**shared, "seed": seed}), variant) for seed in range(V)]


def status_bytes(field: str) -> int:
    """A size from the kernel's account of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def take_steps(changes: dict[str, Any]) -> int:
    """Peak bytes that a group takes in two steps, the last of them logged, beyond what the process had before."""
    settings, rows = settings_of(changes), changes.get("batch_rows", B)
    batches = [torch.randn(rows, D).to(torch.bfloat16) for _ in range(2)]
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = status_bytes("VmRSS")
    group = make_group(settings, num_steps=9, batch_rows=rows, scale=1.0, mean=[0.0] * D, device=CPU)
    for index, batch in enumerate(batches):
        group.step(batch, log=index == 1, log_cosines=index == 1)
        group.state()["rows_since_fired"].fill_(10**6)  # all latents count as dead: AuxK has most to do
    return status_bytes("VmHWM") - before


def main(names: list[str]) -> None:
    """Prints the peak of each group, measured in this process one after the other."""
    torch.set_num_threads(1)
    small = {"d_sae": 128, "batch_rows": 64}
    for name in names:  # what is loaded or compiled at first use does not count
        take_steps({**GROUPS[name], **small})
    print(json.dumps({name: take_steps(GROUPS[name]) for name in names}))


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    # A process of its own, which gives back at once what is freed: what the tests before took does not hide anything.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    program = "import sys; from tests.train.steps.test_memory import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, *GROUPS], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("name", GROUPS)
def test_the_estimate_of_memory_is_what_real_steps_take(name: str, measured: dict[str, int]) -> None:
    changes = GROUPS[name]
    rows = changes.get("batch_rows", B)
    estimate = group_bytes(settings_of(changes), d_model=D, batch_rows=rows, device=CPU)
    assert 0.9 * measured[name] <= estimate <= 2.0 * measured[name], (estimate, measured[name])


def test_what_is_shared_by_all_variants_is_counted_once() -> None:
    # A relu step: the batch with its two columns of biases, 4 (D + 2) B bytes, is shared.
    settings = settings_of({"d_sae": 64})
    one, three = (group_bytes(settings[:count], d_model=D, batch_rows=B, device=CPU) for count in (1, 3))
    assert three - 3 * one == -2 * 4 * (D + 2) * B
