"""What training does when the machine does not let it read or write: it stops, and trains nothing again for it."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from store.errors import MachineError
from store.machine import explain
from train.reuse import take, take_earlier
from train.rounds import PLAN_FILE, _kept_plan

VARIANT: Any = SimpleNamespace(name="baseline", key="k")
FILES = ("card.json", "log.jsonl", "cfg.json", "sae_weights.safetensors")


def full(*_arguments: object) -> None:
    raise explain(OSError(errno.ENOSPC, "No space left on device"), "link or copy a to b")


def test_a_full_disk_does_not_make_an_earlier_sae_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.reuse.link_or_copy", full)
    with pytest.raises(MachineError, match=r"No space left on device\. Free some space"):
        take({name: tmp_path / name for name in FILES}, VARIANT, tmp_path / "out")


def test_a_card_that_cannot_be_read_is_no_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = [{f"baseline/{name}": tmp_path / name for name in FILES}]
    assert take_earlier([VARIANT], earlier, folder=tmp_path / "out") == [VARIANT]  # there is none

    def fail(_path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="Input/output error"):
        take_earlier([VARIANT], earlier, folder=tmp_path / "out")


def test_a_plan_that_cannot_be_read_is_not_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _kept_plan(tmp_path, [VARIANT]) is None
    (tmp_path / PLAN_FILE).write_text('[[["k"]]]')
    assert _kept_plan(tmp_path, [VARIANT]) == [((VARIANT,),)]

    def fail(_path: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="Too many open files"):
        _kept_plan(tmp_path, [VARIANT])
