"""The memory that a training takes when nobody says."""

import os
from pathlib import Path

import pytest
import torch

from compute.memory import CPU_SHARE, default_budget


def test_a_container_counts_by_its_limit_and_a_machine_by_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "limit").write_text("1000000\n")
    monkeypatch.setattr("compute.memory._CGROUP_LIMITS", (tmp_path / "absent", tmp_path / "limit"))
    assert default_budget(torch.device("cpu")) == 500_000
    (tmp_path / "limit").write_text("max\n")
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert default_budget(torch.device("cpu")) == int(CPU_SHARE * whole)
