"""Set-ups on disk: found when they are whole, made again when anything is amiss, removed when there is no room."""

import os
from pathlib import Path

import pytest

from evaluate.kept import KeptSetUps
from store.errors import Busy

INPUTS = {"settings": {"size": 3}, "version": 1}


def make(set_ups: KeptSetUps, name: str = "core", *, size: int = 10, **inputs: int) -> Path:
    """A finished set-up of `size` bytes."""
    with set_ups.open(name, INPUTS | inputs) as kept:
        assert not kept.is_complete
        (kept.path / "inner").mkdir()
        (kept.path / "inner" / "numbers").write_bytes(b"x" * size)
        kept.finish()
    return kept.path


def is_found(set_ups: KeptSetUps, **inputs: int) -> bool:
    with set_ups.open("core", INPUTS | inputs) as kept:
        return kept.is_complete


@pytest.fixture
def set_ups(tmp_path: Path) -> KeptSetUps:
    return KeptSetUps(tmp_path / "set-ups", budget_bytes=10_000)


def test_a_finished_set_up_is_found_again_by_another_run(set_ups: KeptSetUps, tmp_path: Path) -> None:
    make(set_ups)
    assert is_found(KeptSetUps(tmp_path / "set-ups", budget_bytes=10_000))


def test_other_inputs_are_another_set_up(set_ups: KeptSetUps) -> None:
    make(set_ups)
    assert not is_found(set_ups, version=2)
    assert is_found(set_ups)


def test_what_was_not_finished_is_emptied_before_it_is_filled_again(set_ups: KeptSetUps) -> None:
    with set_ups.open("core", INPUTS) as kept:
        (kept.path / "numbers").write_bytes(b"half")
    with set_ups.open("core", INPUTS) as kept:
        assert not kept.is_complete
        assert not (kept.path / "numbers").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "add", "forget"])
def test_a_damaged_set_up_is_made_again(set_ups: KeptSetUps, damage: str) -> None:
    path = make(set_ups)
    file = path / "inner" / "numbers"
    if damage == "flip":
        file.write_bytes(b"y" + file.read_bytes()[1:])
    elif damage == "cut":
        os.truncate(file, 3)
    elif damage == "remove":
        file.unlink()
    elif damage == "add":
        (path / "stranger").write_bytes(b"")
    else:
        (path / "kept.json").unlink()
    assert not is_found(set_ups)


def test_two_processes_never_fill_the_same_set_up(set_ups: KeptSetUps, tmp_path: Path) -> None:
    other = KeptSetUps(tmp_path / "set-ups", budget_bytes=10_000)
    with set_ups.open("core", INPUTS), pytest.raises(Busy, match="is being written by"), other.open("core", INPUTS):
        pass


def test_many_processes_read_what_is_finished_at_once(set_ups: KeptSetUps, tmp_path: Path) -> None:
    make(set_ups)
    other = KeptSetUps(tmp_path / "set-ups", budget_bytes=10_000)
    with set_ups.open("core", INPUTS) as first, other.open("core", INPUTS) as second:
        assert first.is_complete
        assert second.is_complete


def test_those_not_used_for_longest_go_first_when_there_is_no_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = KeptSetUps(tmp_path / "set-ups", budget_bytes=10_000)
    paths = [make(earlier, size=4000, version=version) for version in (1, 2, 3)]
    for age, path in zip((10, 30, 20), paths, strict=True):
        os.utime(path / "kept.json", (1e9 - age, 1e9 - age))
    now = KeptSetUps(tmp_path / "set-ups", budget_bytes=10_000)
    now.make_room()
    assert [path.exists() for path in paths] == [True, False, True]
    assert "removes the set-up core-" in capsys.readouterr().err


def test_what_this_run_uses_is_the_last_to_go(tmp_path: Path) -> None:
    earlier = make(KeptSetUps(tmp_path / "set-ups", budget_bytes=10_000), size=4000, version=1)
    now = KeptSetUps(tmp_path / "set-ups", budget_bytes=5_000)
    used = make(now, size=4000, version=2)
    os.utime(used / "kept.json", (1e9, 1e9))
    now.make_room()
    assert (earlier.exists(), used.exists()) == (False, True)


def test_what_another_process_is_filling_is_not_removed(tmp_path: Path) -> None:
    filling = KeptSetUps(tmp_path / "set-ups", budget_bytes=10_000)
    finished = make(filling, size=4000, version=1)
    with filling.open("core", INPUTS | {"version": 2}) as kept:
        (kept.path / "numbers").write_bytes(b"x" * 4000)
        KeptSetUps(tmp_path / "set-ups", budget_bytes=0).make_room()
        assert not finished.exists()
        kept.finish()
    assert (kept.path / "numbers").read_bytes() == b"x" * 4000
    assert is_found(filling, version=2)
