"""Checkpoint files: what is in them, which are kept, which is used."""

import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from store.errors import MismatchedCache
from store.read.batches import Position
from train.checkpoint import checkpoints_in, load_checkpoint, load_newest, save_checkpoint

TENSORS: dict[str, Tensor] = {
    "flag": torch.tensor([True, False, True]),
    "W": torch.arange(6.0).reshape(2, 3).t(),  # not contiguous
    "scalar": torch.tensor(1.5, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "count": torch.tensor([1, 2**40]),
    "low": torch.tensor([1.0, -2.0, 3.0], dtype=torch.bfloat16),
}


def save(folder: Path, step: int, *, num_kept: int = 2, key: str = "k") -> Path:
    position = Position(epoch=1, batch=step)
    return save_checkpoint(folder, key=key, num_steps_done=step, position=position, tensors=TENSORS, num_kept=num_kept)


def test_a_checkpoint_is_a_safetensors_file_that_gives_back_every_tensor(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    head, tensors = load_checkpoint(path, key="k")
    assert (head.num_steps_done, head.position) == (7, Position(epoch=1, batch=7))
    for read in (tensors, load_file(path)):
        assert read.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name], tensor)


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100, 99):
        save(tmp_path, step, num_kept=3)
    assert [path.name for path in checkpoints_in(tmp_path)] == [
        f"checkpoint-{step:012d}.safetensors" for step in (100, 99, 10)
    ]


def test_the_newest_sound_one_is_used_and_damaged_ones_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step, num_kept=3)
    newest, middle, _ = checkpoints_in(tmp_path)
    newest.write_bytes(newest.read_bytes()[:100])
    data = bytearray(middle.read_bytes())
    data[-1] ^= 1
    middle.write_bytes(data)
    (tmp_path / "checkpoint-000000000020.safetensors.abc.tmp").write_bytes(b"half")
    found = load_newest(tmp_path, key="k")
    assert found is not None
    assert found[0].num_steps_done == 5
    err = capsys.readouterr().err
    assert f"expected a training checkpoint in {newest}, found something else" in err
    assert f"in {middle}, found" in err
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000000005.safetensors"]


def test_a_checkpoint_of_another_training_is_refused_by_its_key(tmp_path: Path) -> None:
    path = save(tmp_path, 5, key="1" * 64)
    with pytest.raises(MismatchedCache, match=r"expected the checkpoint of training 000000000000 in .* that of 1"):
        load_checkpoint(path, key="0" * 64)
    assert load_newest(tmp_path, key="0" * 64) is None


def test_what_cannot_be_made_durable_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"could not write .*: No space left on device\. Free some space"):
        save(tmp_path, 10, num_kept=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_that_ends_early_leaves_the_earlier_ones(tmp_path: Path) -> None:
    # The kernel refuses to let a file of this process grow beyond 600 bytes, as a full disk would.
    save(tmp_path, 5)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"could not write .*checkpoint-000000000010\.safetensors: .*File too large.*"
        ):
            save(tmp_path, 10, num_kept=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("fault", ["too many open files", "of the machine, inside safetensors"])
def test_a_checkpoint_that_the_machine_does_not_open_stays(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would otherwise be passed over as damaged, and removed."""
    save(tmp_path, 5)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def inside(*_arguments: object, **_others: object) -> None:
        raise SafetensorError("I/O error: Cannot allocate memory (os error 12)")

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if fault == "too many open files":
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    else:
        monkeypatch.setattr("train.checkpoint.safe_open", inside)
    try:
        with pytest.raises(OSError, match=r"Too many open files|Cannot allocate memory"):
            load_checkpoint(tmp_path / "checkpoint-000000000005.safetensors", key="k")
        if fault != "too many open files":
            with pytest.raises(OSError, match="Cannot allocate memory"):
                load_newest(tmp_path, key="k")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "passed over" not in capsys.readouterr().err
