"""Windows by shard: packed ahead of who asks, kept on disk, and continued without tokenizing again."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from harvest import tokens
from harvest.interleave import shuffled, unchecked
from harvest.text import TextSource
from harvest.tokens import TooLittleText, pack
from harvest.windows import ACCOUNT_FILE, STATE_FILE, WindowSource, read_shard, shard_path
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS
from store.identity import ModelIdentity
from tests.harvest.texts import BOS, text_of, word_tokenizer, words

DOCUMENTS = [words(*range(10 + n % 40, 13 + n % 40 + n % 5), held_out=n % 3 == 0) for n in range(600)]


def spec(**changes: object) -> CacheSpec:
    """3 tokens a window, 4 windows a shard."""
    model = ModelIdentity(
        name="words", revision=None, weights_sha256="0" * 64, tokenizer_sha256="0" * 64, d_model=8, num_layers=1,
        vocab_size=64, bos_token_id=BOS,
    )  # fmt: skip
    return CacheSpec(
        model=model, hooks=("blocks.0.hook_resid_post",), text={"kind": "test"}, context_length=3,
        excluded_positions=("bos",), packing="", held_out_fraction=0.5, compute_dtype="float32",
        forward_batch_sequences=4, sequences_per_chunk=2, chunks_per_shard=2, codec="none", harvest_version=1,
    ).model_copy(update=changes)  # fmt: skip


def source(
    folder: Path, text: TextSource, load: Callable[[], Tokenizer] = word_tokenizer, **sizes: int
) -> WindowSource:
    counts = {"num_sequences": 30, "num_held_out_sequences": 9} | sizes
    return WindowSource(folder, text, load_tokenizer=load, spec=spec(), **counts)


def all_windows(windows: WindowSource, *, num_training: int = 8, num_held_out: int = 3) -> list[list[list[int]]]:
    shards = {"training": num_training, "held_out": num_held_out}
    return [
        np.concatenate([windows.shard(split, shard) for shard in range(shards[split])]).tolist() for split in SPLITS
    ]


def test_the_shards_end_to_end_are_the_windows_that_are_packed_at_once(tmp_path: Path) -> None:
    with source(tmp_path, text_of(DOCUMENTS)) as windows:
        training, held_out = all_windows(windows)
        account = windows.account()
    expected = pack(
        text_of(DOCUMENTS), word_tokenizer(), bos_token_id=BOS, vocab_size=64, context_length=3, num_sequences=30,
        num_held_out_sequences=9, held_out_fraction=0.5,
    )  # fmt: skip
    assert training == expected.training.tolist()
    assert held_out == expected.held_out.tolist()
    [part] = account.parts
    assert (part.num_training_tokens, part.num_held_out_tokens) == (30 * 2, 9 * 2)


def test_a_shard_is_there_before_the_text_is_read_and_any_shard_may_be_asked_for_first(tmp_path: Path) -> None:
    """The model starts while the text still comes."""
    go_on = threading.Event()

    def slow() -> Iterator[str]:
        yield from DOCUMENTS[:300]
        assert go_on.wait(timeout=60)
        yield from DOCUMENTS[300:]

    with source(tmp_path, text_of(slow), num_sequences=400, num_held_out_sequences=100) as windows:
        first = windows.shard("training", 0)
        assert not go_on.is_set()
        assert not (tmp_path / ACCOUNT_FILE).exists()
        go_on.set()
        assert windows.shard("held_out", 24).shape == (4, 3)
        assert np.array_equal(windows.shard("training", 0), first)
    assert np.array_equal(read_shard(tmp_path, "training", 0, context_length=3), first)  # as a worker reads it


def test_nothing_is_tokenized_where_all_shards_are_kept(tmp_path: Path) -> None:
    def refuse() -> Tokenizer:
        pytest.fail("a tokenizer was loaded")

    with source(tmp_path, text_of(DOCUMENTS)) as windows:
        expected, account = all_windows(windows), windows.account()
    with source(tmp_path, text_of(lambda: pytest.fail("the text was read")), refuse) as windows:
        assert all_windows(windows) == expected
        assert windows.account() == account


def test_a_run_that_was_ended_goes_on_without_tokenizing_again_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever document it was ended at: windows and account are those of a run that was not."""
    monkeypatch.setattr(tokens, "BATCH_DOCUMENTS", 8)

    class Ended(Exception):
        pass

    def until(number: int) -> Iterator[str]:
        yield from DOCUMENTS[:number]
        raise Ended

    tokenized: list[str] = []
    plain_tokenize = tokens.tokenize

    def recording(texts: list[str], *arguments: object, **options: object) -> object:
        tokenized.extend(texts)
        return plain_tokenize(texts, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tokens, "tokenize", recording)
    with source(tmp_path / "whole", text_of(DOCUMENTS), num_sequences=120) as windows:
        expected = all_windows(windows, num_training=30), windows.account()
    whole = list(tokenized)
    for number in (20, 33, 64):
        folder = tmp_path / str(number)
        with (
            source(folder, text_of(lambda number=number: until(number)), num_sequences=120) as windows,
            pytest.raises(Ended),
        ):
            windows.account()
        assert (folder / STATE_FILE).exists()
        tokenized.clear()
        with source(folder, text_of(DOCUMENTS), num_sequences=120) as windows:
            assert (all_windows(windows, num_training=30), windows.account()) == expected
        assert whole[-len(tokenized) :] == tokenized
        wanted = [n for n in range(number // 8 * 8 - 8) if n % 3]  # of training: these had been packed
        assert 0 < len(tokenized) <= len(whole) - len(wanted)


def test_windows_that_were_damaged_are_packed_again(tmp_path: Path) -> None:
    with source(tmp_path, text_of(DOCUMENTS)) as windows:
        expected = all_windows(windows)
        windows.account()
    path = shard_path(tmp_path, "training", 3)
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    shard_path(tmp_path, "held_out", 0).unlink()
    with source(tmp_path, text_of(DOCUMENTS)) as windows:
        assert all_windows(windows) == expected


def test_text_that_ends_too_early_is_said_at_the_next_shard_and_not_at_the_last(tmp_path: Path) -> None:
    with source(tmp_path, text_of(DOCUMENTS), num_sequences=10**6) as windows:
        with pytest.raises(TooLittleText, match=r"expected text for 2000000 training rows .* got \d+ rows"):
            windows.account()
        with pytest.raises(TooLittleText):
            windows.shard("training", 0)


def test_packing_begins_before_a_shard_is_asked_for_and_a_wait_for_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("harvest.windows.TOLD_EVERY_SECONDS", 0.01)
    begun, waited = threading.Event(), threading.Event()

    def slow() -> Iterator[str]:
        begun.set()
        assert waited.wait(timeout=60)
        yield from DOCUMENTS

    with source(tmp_path, text_of(slow)) as windows:
        windows.start()
        assert begun.wait(timeout=60)
        plain_tell = windows._tell
        monkeypatch.setattr(windows, "_tell", lambda: (plain_tell(), waited.set()))
        windows.shard("training", 0)
    assert "tokens: 0 of 39 windows are packed; the model waits for the next" in capsys.readouterr().err


def test_a_source_that_is_left_early_leaves_no_thread(tmp_path: Path) -> None:
    """Even one that reads documents into a batch or a window that is never full."""
    num_read = 0

    def endless() -> Iterator[str | None]:
        nonlocal num_read
        yield from DOCUMENTS[:300]
        while True:
            num_read += 1
            yield None

    before = threading.active_count()
    with source(tmp_path, text_of(endless), num_sequences=10**7) as windows:
        windows.shard("training", 0)
    assert threading.active_count() == before
    text = text_of(endless)
    window = TextSource(
        text.lineage, text.sources, text.parts,
        lambda check=unchecked, /: shuffled(text.documents(check), seed=0, window_documents=10**9),
    )  # fmt: skip
    num_read = 0
    with source(tmp_path / "window", window) as windows:
        windows.start()
        while num_read < 1000:
            time.sleep(0.001)
    assert threading.active_count() == before


def test_memory_holds_one_shard_and_not_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    plain_add = tokens.ShardStream.add

    def watched(self: tokens.ShardStream, token_ids: np.ndarray) -> int:
        nonlocal most
        taken = plain_add(self, token_ids)
        most = max(most, self.num_waiting)
        return taken

    monkeypatch.setattr(tokens.ShardStream, "add", watched)
    with source(tmp_path, text_of(DOCUMENTS), num_sequences=300) as windows:
        windows.account()
    assert most < 4 * 2  # tokens of a shard
