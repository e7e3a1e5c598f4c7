"""What evaluation does when the machine does not let it read a result: it stops, and measures nothing again for it."""

from pathlib import Path

import pytest

from evaluate.dependencies import all_cards
from evaluate.reuse import take_earlier
from store.errors import StoreError


def test_a_result_that_cannot_be_read_is_no_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "baseline.json").write_text("{}")
    missing = {"baseline": {"version": 1}}
    take_earlier(
        tmp_path, missing, output=str(tmp_path / "out"), aside=tmp_path / "aside"
    )  # no result of ours is nothing to reuse

    def fail(_path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(OSError, match="Input/output error"):
        take_earlier(tmp_path, missing, output=str(tmp_path / "out"), aside=tmp_path / "aside")


def test_what_a_volume_keeps_at_its_root_is_no_variant(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    with pytest.raises(StoreError, match=r"expected a folder per variant in .*, found none"):
        all_cards(tmp_path, None)  # type: ignore[arg-type]
