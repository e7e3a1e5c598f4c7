"""Digests that are remembered for the very file that was read, and for no other."""

import hashlib
import os
from pathlib import Path

import pytest

from store.write.known_digests import KnownDigests


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("store.write.known_digests.REMEMBERED_BYTES", 1)
    path = tmp_path / "rows"
    path.write_bytes(b"rows")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []

    def sha256(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr("store.write.known_digests.file_sha256", sha256)
    return read


def test_a_file_is_read_once_in_two_runs_whatever_its_name(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = count_reads(monkeypatch)
    known = KnownDigests(tmp_path / "digests.json")
    expected = hashlib.sha256(b"rows").hexdigest()
    assert known.sha256(large) == expected
    known.save()
    (tmp_path / "link").hardlink_to(large)
    assert KnownDigests(tmp_path / "digests.json").sha256(tmp_path / "link") == expected
    assert read == [large]


def test_a_file_that_changed_is_read_again(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownDigests(tmp_path / "digests.json")
    known.remember(large, hashlib.sha256(b"rows").hexdigest())
    read = count_reads(monkeypatch)
    known.sha256(large)
    assert read == []
    large.write_bytes(b"ROWS")  # as long, and now
    assert known.sha256(large) == hashlib.sha256(b"ROWS").hexdigest()
    assert read == [large]
    large.write_bytes(b"Rows")  # a file that changed a moment ago is not remembered
    assert known.sha256(large) == hashlib.sha256(b"Rows").hexdigest()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"digests": {"1:2": 3}}', '{"digests": {"1:2": [4]}}'])
def test_a_damaged_memory_is_an_empty_one(text: str, large: Path, tmp_path: Path) -> None:
    (tmp_path / "digests.json").write_text(text)
    assert KnownDigests(tmp_path / "digests.json").sha256(large) == hashlib.sha256(b"rows").hexdigest()
