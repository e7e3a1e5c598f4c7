"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from store.atomic import link_or_copy, read_json, write_bytes, write_json
from store.errors import StoreError
from store.record import Record, digest


class Point(Record):
    x: int
    y: float | None = None


def test_equal_values_have_equal_digests_and_different_ones_do_not() -> None:
    assert digest({"b": 1, "a": (1, 2)}) == digest({"a": [1, 2], "b": 1})
    assert digest(Point(x=1)) == digest({"x": 1, "y": None})
    assert len({digest(1), digest("1"), digest([1]), digest(None), digest(1.5)}) == 5


def test_records_refuse_unknown_keys_strings_for_numbers_and_changes() -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        Point.model_validate({"x": 1, "z": 2})
    with pytest.raises(ValueError, match="valid integer"):
        Point.model_validate({"x": "1"})
    with pytest.raises(ValueError, match="finite"):
        Point.model_validate({"x": 1, "y": float("nan")})
    with pytest.raises(ValueError, match="frozen"):
        Point(x=1).x = 2


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"could not write .*file: No space left on device\. Free some space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_written_the_same_way_for_equal_values(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": Point(x=1)})
    write_json(tmp_path / "b", {"a": {"y": None, "x": 1}, "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_json(tmp_path / "a") == {"a": {"x": 1, "y": None}, "b": 1}


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000])
def test_broken_json_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file.json").write_bytes(data)
    with pytest.raises(StoreError, match=r"expected JSON in .*file\.json"):
        read_json(tmp_path / "file.json")


def test_a_linked_file_is_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"data")
    link_or_copy(tmp_path / "a", tmp_path / "deep/b")
    assert (tmp_path / "deep/b").stat().st_ino == (tmp_path / "a").stat().st_ino
