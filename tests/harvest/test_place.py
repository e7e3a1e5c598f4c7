"""A cache is assembled on the disk that it ends on: beside a link's folder, or inside a volume."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harvest.config import HarvestConfig
from harvest.dispatch import HarvestResources
from harvest.run import run
from language_model.config import LanguageModelConfig
from store.cache.manifest import Manifest
from store.care.verify import verify


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=other) as name:
        yield Path(name)


@pytest.mark.parametrize("kind", ["link", "volume"])
def test_a_cache_on_another_disk_is_never_copied_to_it(
    kind: str,
    tmp_path: Path,
    elsewhere: Path,
    tiny_model_folder: Path,
    harvest_settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output, scratch = tmp_path / "data" / "activations", tmp_path / "data" / ".partial"
    big = elsewhere / "big"
    output.parent.mkdir()
    output.symlink_to(big)
    if kind == "volume":
        big.mkdir()
        (big / "lost+found").mkdir()
        monkeypatch.setattr("store.replace._is_mount", lambda folder: folder == big)
    monkeypatch.setattr("store.replace._copied", lambda *_: pytest.fail("a cache was copied"))

    def harvest(num_rows: int) -> Manifest:
        return run(
            HarvestConfig.model_validate({**harvest_settings, "num_rows": num_rows}),
            model=LanguageModelConfig(name=str(tiny_model_folder), revision=None, compute_dtype="float32"),
            output=output,
            scratch=scratch,
            resources=HarvestResources("cpu"),
            reuse=True,
        )

    if kind == "volume":  # it cannot be renamed
        rename = Path.rename

        def busy(self: Path, to: Path) -> Path:
            if self == big:
                raise OSError(16, "Device or resource busy", str(self))
            return rename(self, to)

        monkeypatch.setattr(Path, "rename", busy)
    harvest(8 * 7)
    manifest = harvest(20 * 7)
    assert manifest.num_sequences == 20
    assert "harvest: 2 of 4 shards are unchanged and reused" in capsys.readouterr().err
    assert output.is_symlink()
    assert verify(output, full=True, num_threads=1) == []
    assert [path.name for path in elsewhere.iterdir()] == ["big"]
    kept = {"lost+found"} if kind == "volume" else set()
    assert {path.name for path in big.iterdir() if path.name.startswith((".", "lost"))} == kept
    assert not [path for path in scratch.rglob("*") if path.is_file()]
