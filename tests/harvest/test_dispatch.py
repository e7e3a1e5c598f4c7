"""Another hook, a request to stop, an estimate, and workers: the same bytes whatever happens on the way."""

import json
import os
import random
import shutil
import signal
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file

from harvest.config import HarvestConfig
from harvest.dispatch import HarvestResources
from harvest.partitions import partitions_of
from harvest.run import run
from language_model.config import LanguageModelConfig
from store.cache.manifest import Manifest
from store.harvest_log import read_harvest_log
from store.write.writer import CacheWriter

HOOK, LAST_HOOK = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"
HERE = HarvestResources("cpu")


class Harvest:
    """An output, scratch and settings."""

    def __init__(self, folder: Path, model_folder: Path, settings: dict[str, Any]) -> None:
        self.output, self.scratch = folder / "activations", folder / "scratch"
        self.model = LanguageModelConfig(name=str(model_folder), revision=None, compute_dtype="float32")
        self.settings = settings

    def __call__(
        self,
        resources: HarvestResources = HERE,
        *,
        estimate_only: bool = False,
        **changes: Any,  # noqa: ANN401
    ) -> Manifest | None:
        return run(
            HarvestConfig.model_validate(self.settings | changes),
            model=self.model, output=self.output, scratch=self.scratch, resources=resources, reuse=True,
            estimate_only=estimate_only,
        )  # fmt: skip

    def tree(self) -> dict[str, bytes]:
        files = (path for path in self.output.rglob("*") if path.is_file())
        return {path.relative_to(self.output).as_posix(): path.read_bytes() for path in files}

    def committed(self) -> int:
        return len(list(self.scratch.glob("activations-*/cache/shards/*.json")))


@pytest.fixture
def settings(harvest_settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "stories.jsonl"
    texts = [f"Story {n}: there were {n * n} foxes, and each of them had {n + 1} names." for n in range(120)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return harvest_settings | {"text": {"kind": "files", "paths": [str(path)], "column": "text"}}


@pytest.fixture
def harvest(tmp_path: Path, tiny_model_folder: Path, settings: dict[str, Any]) -> Harvest:
    return Harvest(tmp_path / "first", tiny_model_folder, settings)


@pytest.fixture
def other(tmp_path: Path, tiny_model_folder: Path, settings: dict[str, Any]) -> Harvest:
    return Harvest(tmp_path / "second", tiny_model_folder, settings)


def inodes(harvest: Harvest, hook: str) -> dict[str, int]:
    return {path.parent.name: path.stat().st_ino for path in (harvest.output / hook / "c").glob("*/0")}


def test_another_hook_writes_its_own_rows_alone_and_equals_a_harvest_from_nothing(
    harvest: Harvest, other: Harvest, capsys: pytest.CaptureFixture[str]
) -> None:
    harvest()
    before = inodes(harvest, HOOK)
    capsys.readouterr()
    harvest(hooks=[LAST_HOOK, HOOK])
    said = capsys.readouterr().err
    assert f"of 4 shards the rows of {HOOK} are kept, and only those of the other hooks are written" in said
    assert "161 rows at 1 hook to store" in said  # 20 training and 3 held-out sequences of 7 rows
    assert inodes(harvest, HOOK) == before
    other(hooks=[LAST_HOOK, HOOK])
    assert harvest.tree() == other.tree()
    log = read_harvest_log(harvest.output)
    assert log is not None
    assert [run.hooks for run in log.runs] == [(HOOK,), (LAST_HOOK,)]


def test_fewer_hooks_need_no_language_model_and_no_text(
    harvest: Harvest, other: Harvest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    harvest(hooks=[HOOK, LAST_HOOK])
    other(hooks=[LAST_HOOK])
    capsys.readouterr()
    monkeypatch.setattr("harvest.windows.WindowSource._pack", None)  # what packs would fail
    harvest(hooks=[LAST_HOOK])
    said = capsys.readouterr().err
    assert "4 of 4 shards are unchanged and reused" in said
    assert "loading the language model" not in said
    assert harvest.tree() == other.tree()


def refuse_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a tokenizer was loaded")

    monkeypatch.setattr("harvest.shards.load_tokenizer", refuse)
    monkeypatch.setattr("harvest.windows.WindowSource._pack", refuse)


@pytest.mark.parametrize(
    "changes",
    [
        {"hooks": [LAST_HOOK, HOOK]},
        {"chunks_per_shard": 2},  # 4 sequences a shard for 8, and another last one
    ],
)
def test_the_tokens_of_an_earlier_cache_are_taken_and_no_text_is_tokenized(
    harvest: Harvest, other: Harvest, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    other(**changes)
    harvest()
    refuse_text(monkeypatch)
    harvest(**changes)
    assert harvest.tree() == other.tree()


def test_another_model_with_the_same_tokenizer_takes_the_tokens_too(
    harvest: Harvest, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = harvest()
    shutil.copytree(tiny_model_folder, tmp_path / "trained on")
    weights = load_file(tmp_path / "trained on" / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 1.5
    save_file(weights, tmp_path / "trained on" / "model.safetensors", metadata={"format": "pt"})
    harvest.model = LanguageModelConfig(name=str(tmp_path / "trained on"), revision=None, compute_dtype="float32")
    refuse_text(monkeypatch)
    after = harvest()
    assert before is not None
    assert after is not None
    assert after.digest != before.digest
    assert after.files["tokens/c/0/0"] == before.files["tokens/c/0/0"]
    assert after.text_account == before.text_account


@pytest.mark.parametrize("change", [{"num_rows": 13 * 7}, {"held_out_fraction": 0.5}])
def test_tokens_of_another_text_or_size_are_not_taken(
    harvest: Harvest, other: Harvest, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    other(**change)
    harvest()
    capsys.readouterr()
    harvest(**change)
    assert "no text is read" not in capsys.readouterr().err
    assert harvest.tree() == other.tree()


def test_tokens_that_are_not_as_they_were_written_are_made_from_the_text(
    harvest: Harvest, other: Harvest, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"codec": "none"}
    other(**changes)
    harvest()
    path = harvest.output / "tokens" / "c" / "1" / "0"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    capsys.readouterr()
    harvest(**changes)
    assert "no text is read" not in capsys.readouterr().err
    assert harvest.tree() == other.tree()


def test_a_signal_ends_a_harvest_with_all_that_was_computed_and_the_next_goes_on(
    harvest: Harvest, other: Harvest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = CacheWriter.submit_shard

    def stop_after_two(self: CacheWriter, shard: int, **arguments: Any) -> Any:  # noqa: ANN401
        done = submit(self, shard, **arguments)
        if shard == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    with monkeypatch.context() as patched:
        patched.setattr(CacheWriter, "submit_shard", stop_after_two)
        with pytest.raises(SystemExit, match=r"harvest: stopped by SIGTERM after 2 of 4 shards\. Run the same command"):
            harvest()
    assert not harvest.output.exists()
    capsys.readouterr()
    harvest()
    assert "2 of 4 shards are unchanged and reused" in capsys.readouterr().err
    other()
    assert harvest.tree() == other.tree()


def test_an_estimate_says_what_it_would_take_and_computes_nothing(
    harvest: Harvest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert harvest(estimate_only=True) is None
    assert not harvest.output.exists()
    assert harvest.committed() == 0
    said = capsys.readouterr().err
    assert "184 tokens through the model, 161 rows at 1 hook to store" in said  # 23 windows of 8 and 7
    for word in ("disk: ", "compressed", "are free", "time: about", "tokens/s", "memory: ", "break-even: "):
        assert word in said
    harvest()
    capsys.readouterr()
    harvest(estimate_only=True)
    assert "nothing would be computed: every shard is there" in capsys.readouterr().err


def test_what_cannot_fit_is_refused_before_anything_is_removed(
    harvest: Harvest, monkeypatch: pytest.MonkeyPatch
) -> None:
    harvest()
    before = harvest.tree()
    # Shards 2 to 4, 168 rows of 32 channels of 2 bytes: 10,752 bytes, 6,325 at the best of all codecs; measured, more.
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "free")(7_000))
    with pytest.raises(ValueError, match=r"expected about 0\.0 MB of free space .* the earlier cache is untouched"):
        harvest(num_rows=40 * 7)
    assert harvest.tree() == before


def test_partitions_are_disjoint_ranges_that_hold_every_shard_once() -> None:
    shards = [("training", n) for n in range(1000)] + [("held_out", n) for n in range(3)]
    for num_workers in (1, 2, 4, 64, 5000):
        parts = partitions_of(shards, num_workers=num_workers)  # type: ignore[arg-type]
        assert [place for part in parts for place in part] == shards
        assert len(parts) >= min(len(shards), num_workers)
        assert max(map(len, parts)) <= 16


def test_two_workers_write_the_bytes_of_one_process(
    harvest: Harvest, other: Harvest, capsys: pytest.CaptureFixture[str]
) -> None:
    other(hooks=[HOOK, LAST_HOOK])
    harvest()
    kept = inodes(harvest, HOOK)
    harvest(HarvestResources("cpu", num_workers=2, num_threads=1), hooks=[HOOK, LAST_HOOK])
    assert harvest.tree() == other.tree()
    assert inodes(harvest, HOOK) == kept  # what was taken over is known to the workers
    log = read_harvest_log(harvest.output)
    assert log is not None
    assert [(run.num_workers, run.num_tokens) for run in log.runs] == [(1, 184), (2, 184)]
    assert [path.name for path in harvest.scratch.iterdir()] == [".lease"]


@pytest.mark.slow
def test_workers_that_are_killed_at_random_moments_leave_no_trace(
    harvest: Harvest, other: Harvest, tmp_path: Path
) -> None:
    changes = {
        "text": {"kind": "standard-library"},
        "context_length": 128,
        "num_rows": 127 * 4000,
        "chunks_per_shard": 32,  # 63 shards of 64 sequences
        "forward_batch_sequences": 16,
    }
    other(**changes)
    moments = sorted(random.Random(0).sample(range(1, 60), k=6))
    killed: list[int] = []
    ended = threading.Event()

    def kill_now_and_then() -> None:
        while len(killed) < len(moments) and not ended.wait(0.01):
            if harvest.committed() >= moments[len(killed)]:
                workers = [
                    child for child in psutil.Process().children(recursive=True) if "spawn_main" in str(child.cmdline())
                ]
                if workers:
                    victim = random.choice(workers)
                    victim.kill()
                    killed.append(victim.pid)
                time.sleep(random.uniform(0.0, 0.5))

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        harvest(HarvestResources("cpu", num_workers=2, num_threads=1), **changes)
    finally:
        ended.set()
        killer.join()
    assert len(killed) >= 3
    assert harvest.tree() == other.tree()
    assert not list(harvest.output.rglob("*.tmp"))
    shutil.rmtree(tmp_path / "first")
