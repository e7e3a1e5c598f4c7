"""How much memory a stage may take when nobody says.

A share of what the machine has, not of what is free just now: the same machine then gives the same groups, and the same
groups the same bytes.
"""

import os
from pathlib import Path

import torch

CPU_SHARE = 0.5
"""The shuffle pool, the page cache of the shards and the rest of the machine need the other half."""
GPU_SHARE = 0.85
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def default_budget(device: torch.device) -> int:
    """Bytes: `GPU_SHARE` of the device's memory, or `CPU_SHARE` of what this machine or container may use."""
    if device.type == "cuda":
        return int(GPU_SHARE * torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(CPU_SHARE * min([total, *_limits()]))


def _limits() -> list[int]:
    limits = []
    for path in _CGROUP_LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):
            continue  # no container, or `max`
    return limits


def available(device: torch.device) -> int | None:
    """Bytes that are free on the device just now: a GPU's own, else this machine's or container's; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None  # no Linux
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([*free, *_limits()]) if free else None
