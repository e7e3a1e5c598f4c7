"""Sequences that a model gives no finite rows for: left out, replaced, counted, and the same whoever computes them.

The model's embedding of one token, the tilde, is infinite, and 8 sequences are a shard, which has 1 spare.
"""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from harvest.config import HarvestConfig
from harvest.dispatch import HarvestResources
from harvest.documents import cut_starts
from harvest.moments import BadActivation
from harvest.not_finite import replace_sequences
from harvest.run import run
from harvest.text import open_text
from harvest.tokens import Windows, pack
from language_model.config import LanguageModelConfig
from language_model.load import load_model
from language_model.tokenizer import load_tokenizer
from store.cache.left_out import LeftOutPlace, spare_sequences
from store.cache.manifest import Manifest, load_manifest
from store.care.info import describe
from store.care.transcode import export
from store.read.cache import ActivationCache
from store.write.writer import CacheWriter

EMBEDDING, HOOK = "blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"
PER_SHARD, SPARE = 8, 1


class Harvest:
    """An output, scratch and settings."""

    def __init__(self, folder: Path, model_folder: Path, settings: dict[str, Any]) -> None:
        self.output, self.scratch = folder / "activations", folder / "scratch"
        self.model = LanguageModelConfig(name=str(model_folder), revision=None, compute_dtype="float32")
        self.settings = settings

    def __call__(self, resources: HarvestResources | None = None, **changes: Any) -> Manifest:  # noqa: ANN401
        manifest = run(
            HarvestConfig.model_validate(self.settings | changes),
            model=self.model, output=self.output, scratch=self.scratch, reuse=True,
            resources=resources or HarvestResources("cpu"),
        )  # fmt: skip
        assert manifest is not None
        return manifest

    def tree(self) -> dict[str, bytes]:
        files = (path for path in self.output.rglob("*") if path.is_file())
        return {path.relative_to(self.output).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def model_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("infinite") / "model"
    shutil.copytree(tiny_model_folder, folder)
    weights = load_file(folder / "model.safetensors")
    tilde = load_tokenizer(folder).token_to_id("~")
    weights["model.embed_tokens.weight"][tilde] = 3e38  # times the embedding's scale of sqrt(32): infinite
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def settings(harvest_settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A tilde stands in documents 3 and 4, numbered from 1, of the training side, and in 2, which is held out."""
    path = tmp_path / "stories.jsonl"
    texts = [f"Story {n}: there were {n * n} foxes, and each of them had {n + 1} names." for n in range(120)]
    for number in (1, 2, 3):
        texts[number] = texts[number].replace("foxes", "~")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return harvest_settings | {
        "text": {"kind": "files", "paths": [str(path)], "column": "text"},
        "hooks": [EMBEDDING, HOOK],
        "not_finite": "leave_out",
    }


@pytest.fixture
def harvest(tmp_path: Path, model_folder: Path, settings: dict[str, Any]) -> Harvest:
    return Harvest(tmp_path / "first", model_folder, settings)


@pytest.fixture
def other(tmp_path: Path, model_folder: Path, settings: dict[str, Any]) -> Harvest:
    return Harvest(tmp_path / "second", model_folder, settings)


def plain_windows(harvest: Harvest, *, num_training: int, num_held_out: int) -> Windows:
    """So many of the text, whatever is in them."""
    config, folder = HarvestConfig.model_validate(harvest.settings), Path(harvest.model.name)
    return pack(
        open_text(config.text), load_tokenizer(folder), bos_token_id=2, vocab_size=512, context_length=8,
        num_sequences=num_training, num_held_out_sequences=num_held_out, held_out_fraction=0.25,
    )  # fmt: skip


def replaced(windows: NDArray[np.uint32], tilde: int, *, num_sequences: int) -> tuple[list[list[int]], int]:
    """What is to be stored, and how many windows are left out: by hand, shard after shard."""
    stored: list[list[int]] = []
    num_left_out = 0
    while num_left := num_sequences - len(stored):
        own, windows = windows[: min(PER_SHARD, num_left)], windows[min(PER_SHARD, num_left) :]
        spare, windows = windows[:SPARE], windows[SPARE:]
        rest = [window for window in spare.tolist() if tilde not in window]
        for window in own.tolist():
            num_left_out += tilde in window
            stored.append(rest.pop(0) if tilde in window else window)
    return stored, num_left_out


def test_a_shard_has_one_spare_sequence_for_64() -> None:
    assert [spare_sequences(number) for number in (1, 8, 64, 65, 1500)] == [1, 1, 1, 2, 24]


def test_sequences_with_an_infinity_are_replaced_by_the_next_ones_of_the_text(harvest: Harvest) -> None:
    manifest = harvest()
    tilde = load_tokenizer(Path(harvest.model.name)).token_to_id("~")
    cache = ActivationCache(harvest.output)
    plain = plain_windows(harvest, num_training=20 + 3 * SPARE, num_held_out=3 + SPARE)
    training, num_training = replaced(plain.training, tilde, num_sequences=20)
    held_out, num_held_out = replaced(plain.held_out, tilde, num_sequences=3)
    assert (num_training, num_held_out) == (2, 1)
    assert cache.tokens(np.arange(20)).tolist() == training
    assert cache.held_out_tokens().tolist() == held_out
    assert (manifest.num_rows, manifest.moments[HOOK].num_rows) == (140, 140)

    model = load_model(Path(harvest.model.name), dtype=torch.float32, device="cpu")
    with torch.inference_mode():
        states = model(input_ids=torch.tensor(training), output_hidden_states=True).hidden_states
    for hook, expected in ((EMBEDDING, states[0]), (HOOK, states[2])):
        rows = torch.from_numpy(cache.rows(hook, np.arange(140))).view(torch.bfloat16).float()
        # Another batch shape changes the last bits of a product, and then of one rounding in so many.
        torch.testing.assert_close(rows, expected[:, 1:].reshape(140, 32), rtol=2**-7, atol=1e-4)


def test_what_was_left_out_is_counted_by_hook_and_named_by_document_and_position(harvest: Harvest) -> None:
    manifest = harvest()
    tilde = load_tokenizer(Path(harvest.model.name)).token_to_id("~")
    plain = plain_windows(harvest, num_training=23, num_held_out=4)
    positions = [window.index(tilde) for window in plain.training.tolist() if tilde in window]
    left_out = manifest.left_out["training"]
    assert left_out.num_sequences == 2
    # At the embedding only the tilde's own row is infinite; attention then makes whole sequences NaN.
    assert (left_out.hooks[EMBEDDING].num_sequences, left_out.hooks[EMBEDDING].num_rows) == (2, 2)
    assert left_out.hooks[EMBEDDING].first == tuple(
        LeftOutPlace(part=0, document=document, position=position)
        for document, position in zip((3, 4), positions, strict=True)
    )
    assert left_out.hooks[HOOK].num_sequences == 2
    assert manifest.left_out["held_out"].num_sequences == 1
    said = describe(harvest.output)
    assert f"training: 2 rows of 2 sequences are not finite at {EMBEDDING}; these sequences were left out" in said
    assert f"document 3 of stories.jsonl, position {positions[0]} of its sequence; document 4 of" in said


def test_workers_a_stop_and_a_smaller_harvest_before_change_no_byte(
    harvest: Harvest, other: Harvest, monkeypatch: pytest.MonkeyPatch
) -> None:
    other()
    submit = CacheWriter.submit_shard

    def stop_after_one(self: CacheWriter, shard: int, **arguments: Any) -> Any:  # noqa: ANN401
        os.kill(os.getpid(), signal.SIGTERM)
        return submit(self, shard, **arguments)

    harvest(num_rows=10 * 7)
    with monkeypatch.context() as patched:
        patched.setattr(CacheWriter, "submit_shard", stop_after_one)
        with pytest.raises(SystemExit, match="stopped by SIGTERM"):
            harvest()
    harvest(HarvestResources("cpu", num_workers=2, num_threads=1))
    assert harvest.tree() == other.tree()


def test_the_size_of_a_forward_pass_changes_neither_tokens_nor_what_is_left_out(
    harvest: Harvest, other: Harvest
) -> None:
    one, another = harvest(), other(forward_batch_sequences=2)
    assert one.left_out == another.left_out
    first, second = ActivationCache(harvest.output), ActivationCache(other.output)
    assert np.array_equal(first.tokens(np.arange(20)), second.tokens(np.arange(20)))


def test_other_hooks_may_leave_out_others_so_none_is_taken_over(
    harvest: Harvest, other: Harvest, capsys: pytest.CaptureFixture[str]
) -> None:
    harvest(hooks=[EMBEDDING])
    capsys.readouterr()
    harvest()
    said = capsys.readouterr().err
    assert "nothing of the earlier cache can be reused: hooks was" in said
    other()
    assert harvest.tree() == other.tree()


def test_an_exported_cache_still_says_what_was_left_out(harvest: Harvest, tmp_path: Path) -> None:
    manifest = harvest()
    export(harvest.output, tmp_path / "exported", codec="none", num_threads=1)
    assert load_manifest(tmp_path / "exported").left_out == manifest.left_out


def test_where_nothing_is_left_out_the_manifest_does_not_speak_of_it(harvest: Harvest, tiny_model_folder: Path) -> None:
    harvest.model = LanguageModelConfig(name=str(tiny_model_folder), revision=None, compute_dtype="float32")
    assert harvest().left_out == {}
    assert b"left_out" not in (harvest.output / "shards" / "00000.json").read_bytes()


def test_more_than_the_spare_sequences_end_the_harvest(harvest: Harvest, tmp_path: Path) -> None:
    path = tmp_path / "stories.jsonl"
    path.write_text(path.read_text().replace("foxes", "~"))
    with pytest.raises(BadActivation, match=r"at most . sequences of training shard \d, as many as it has spare ones"):
        harvest()


def test_a_spare_sequence_that_is_not_finite_is_left_out_too() -> None:
    """Window 1 of three is bad, and so is the first of three spare ones: the second one takes its place."""
    windows, spare = np.arange(6, dtype=np.uint32).reshape(3, 2), np.arange(10, 16, dtype=np.uint32).reshape(3, 2)
    rows = {"h": np.arange(3, dtype=np.uint16).reshape(3, 1)}
    bad = np.array([[False], [True], [False]])
    of_spare = {"h": np.array([[7], [8], [9]], dtype=np.uint16)}, {"h": np.array([[True], [False], [True]])}
    stored, left_out = replace_sequences(
        windows, rows, {"h": bad}, spare=spare, compute=lambda _: of_spare,
        origin=lambda *_: None, first_position=1, where="here",
    )  # fmt: skip
    assert stored.tolist() == [[0, 1], [12, 13], [4, 5]]
    assert rows["h"].ravel().tolist() == [0, 8, 2]
    assert left_out is not None
    assert (left_out.num_sequences, left_out.hooks["h"].num_rows) == (2, 2)
    assert left_out.hooks["h"].first == (LeftOutPlace(part=None, document=None, position=1),) * 2


def test_documents_are_cut_where_tokens_are() -> None:
    """Three documents of 3, 2 and 4 tokens: five tokens are the first two, and the third begins what follows."""
    starts = [(0, 0, 1), (3, 0, 2), (5, 1, 1)]
    assert cut_starts(starts, 5) == (starts[:2], [(0, 0, 2), (0, 1, 1)])
    assert cut_starts(starts, 4) == (starts[:2], [(0, 0, 2), (1, 1, 1)])
    assert cut_starts([], 4) == ([], [])
