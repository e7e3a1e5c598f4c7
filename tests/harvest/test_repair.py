"""Damaged shards are harvested again from the same text and model, and come out with the recorded bytes."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from harvest.config import HarvestConfig
from harvest.dispatch import HarvestResources
from harvest.repair import harvest_again
from harvest.run import run
from language_model.config import LanguageModelConfig
from store.care.repair import Repaired, repair
from store.care.transcode import export
from store.care.verify import verify
from store.errors import MismatchedCache

HOOK = "blocks.1.hook_resid_post"


class Workplace:
    """A harvested cache, and one way to repair it."""

    def __init__(self, folder: Path, model: Path, settings: dict[str, Any]) -> None:
        self.cache = folder / "activations"
        self.model = LanguageModelConfig(name=str(model), revision=None, compute_dtype="float32")
        self.config = HarvestConfig.model_validate(settings)
        run(
            self.config,
            model=self.model,
            output=self.cache,
            scratch=folder / "scratch",
            resources=HarvestResources("cpu"),
            reuse=False,
        )

    def repair(self, cache: Path, **changes: Any) -> Repaired:  # noqa: ANN401 - settings of any type
        config = HarvestConfig.model_validate(self.config.model_dump() | changes)
        return repair(
            cache,
            output="",
            scratch=cache.with_name(".repair"),
            harvest_again=functools.partial(
                harvest_again, config=config, model=self.model, damaged=cache, device="cpu"
            ),
            accept_different_bytes=False,
            num_threads=1,
        )


@pytest.fixture
def workplace(tmp_path: Path, tiny_model_folder: Path, harvest_settings: dict[str, Any]) -> Workplace:
    stories = tmp_path / "stories.jsonl"
    texts = [f"Story {n}: there were {n * n} foxes, and each of them had {n + 1} names. <bos>" for n in range(120)]
    stories.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = harvest_settings | {"text": {"kind": "files", "paths": [str(stories)], "column": "text"}}
    return Workplace(tmp_path, tiny_model_folder, settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_lost_shards_records_and_metadata_come_back_byte_for_byte(workplace: Workplace) -> None:
    whole = contents(workplace.cache)
    lost = [f"{HOOK}/c/1/0", "held_out/tokens/c/0/0", "shards/00002.json", "held_out/zarr.json"]
    for name in lost:
        (workplace.cache / name).unlink()
    done = workplace.repair(workplace.cache)
    assert sorted(done.harvested) == sorted(lost)
    assert contents(workplace.cache) == whole
    assert verify(workplace.cache, full=True, num_threads=1) == []


def test_a_cache_in_another_codec_or_size_is_repaired_as_it_was(workplace: Workplace, tmp_path: Path) -> None:
    export(workplace.cache, tmp_path / "exported", codec="zstd", num_threads=1)
    whole = contents(tmp_path / "exported")
    (tmp_path / "exported" / HOOK / "c/0/0").unlink()
    done = workplace.repair(tmp_path / "exported", num_rows=70)
    assert done.harvested == [f"{HOOK}/c/0/0"]
    assert contents(tmp_path / "exported") == whole


def test_other_settings_than_those_of_the_harvest_are_refused(workplace: Workplace) -> None:
    (workplace.cache / HOOK / "c/1/0").unlink()
    before = contents(workplace.cache)
    with pytest.raises(MismatchedCache, match=r"to have held_out_fraction 0\.5, got 0\.25: it was made from something"):
        workplace.repair(workplace.cache, held_out_fraction=0.5)
    assert contents(workplace.cache) == before
