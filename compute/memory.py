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
