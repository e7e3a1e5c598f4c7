"""Token windows as a harvest asks for them: packed ahead of it by a thread, kept on disk, never all in memory.

A shard's windows are written once they are complete, and read from there, by this process or by others that see the
folder. So the model starts with the first shard, and packing may be as far ahead as it likes: tokens take a thousandth
of the room that their rows take. A run that was killed goes on where its packing stood. Where every shard that is asked
for is there already, as after earlier_windows.py took them from a cache, no text is read.
"""

import hashlib
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import numpy as np
from tokenizers import Tokenizer

from harvest.documents import Origin, Start, origin_of, write_documents
from harvest.streams import Tokens
from harvest.text import TextSource
from harvest.tokens import Packer, PackingState
from store.atomic import write_parts
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS, Split
from store.cache.text_account import TextAccount
from store.errors import StoreError
from store.record_file import read_record_file, write_record_file

STATE_FILE: Final = "state.json"
ACCOUNT_FILE: Final = "account.json"
"""Written last: its existence means that every window is there."""

TOLD_EVERY_SECONDS = 30.0
"""So often it is said that the language model waits for text."""


class _GivenUp(Exception):
    """Nobody wants the rest."""


def shard_path(folder: Path, split: Split, shard: int) -> Path:
    """Where the windows of a shard are kept."""
    return folder / split / f"{shard:05d}"


def write_shard(folder: Path, split: Split, shard: int, windows: Tokens) -> None:
    """Keeps the windows (sequences, context_length) of a shard: their SHA-256, then little-endian uint32."""
    data = windows.astype("<u4").tobytes()
    write_parts(shard_path(folder, split, shard), (hashlib.sha256(data).digest(), data))


def read_shard(folder: Path, split: Split, shard: int, *, context_length: int) -> Tokens | None:
    """The windows (sequences, context_length) of a shard; None where they are not there, or not as they were written.

    Any process that sees the folder may call it, as a worker that is given a range of shards does.
    """
    try:
        stored = shard_path(folder, split, shard).read_bytes()
    except FileNotFoundError:
        return None
    sha256, data = stored[:32], stored[32:]
    if hashlib.sha256(data).digest() != sha256:
        return None
    return np.frombuffer(data, dtype="<u4").reshape(-1, context_length).astype(np.uint32)


def keep_account(folder: Path, account: TextAccount) -> None:
    """Says that every window is there, and what became of the text."""
    write_record_file(folder / ACCOUNT_FILE, account)


class WindowSource(AbstractContextManager["WindowSource"]):
    """The windows of one harvest, by shard.

    Args:
        folder: where they are kept, for one spec and one budget.
        text: what to read.
        load_tokenizer: called if a window has to be made.
        spec: what decides the windows: packing, context length, held-out fraction, shards.
        separator_id: by the tokenizer, see tokens.py.
        num_sequences: training windows, without the spare ones of each shard (see CacheSpec.spare_sequences).
        num_held_out_sequences: held-out windows, likewise.
    """

    def __init__(
        self,
        folder: Path,
        text: TextSource,
        *,
        load_tokenizer: Callable[[], Tokenizer],
        separator_id: Callable[[Tokenizer], int | None] = lambda _: None,
        spec: CacheSpec,
        num_sequences: int,
        num_held_out_sequences: int,
    ) -> None:
        self.folder = folder
        self._text, self._load_tokenizer, self._separator_id, self._spec = text, load_tokenizer, separator_id, spec
        sizes: dict[Split, int] = {"training": num_sequences, "held_out": num_held_out_sequences}
        self._num_shards: dict[Split, int] = {split: spec.num_shards(sizes[split]) for split in SPLITS}
        self._num_spare: dict[Split, int] = {split: self._num_shards[split] * spec.spare_sequences for split in SPLITS}
        self._num_windows: dict[Split, int] = {split: sizes[split] + self._num_spare[split] for split in SPLITS}
        self._per_shard = spec.sequences_per_shard + spec.spare_sequences
        self._num_filled = 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tokens")
        self._given_up = threading.Event()
        self._changed = threading.Condition()
        self._packing: Future[TextAccount] | None = None

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread, which leaves what it has packed for the next run."""
        self._given_up.set()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def start(self) -> None:
        """Begins to pack, if anything is left to be packed: while the language model is still being loaded."""
        if self._kept_account() is None:
            self._start()

    def check(self) -> None:
        """Raises the error that ended packing, if one did."""
        self._raise_error()

    def shard(self, split: Split, shard: int, *, check: Callable[[], object] = lambda: None) -> Tokens:
        """The windows (sequences, context_length) of a shard, as soon as they are complete, in any order of asking.

        Its spare windows are the last ones.

        `check` is called once a second while they are waited for; what it raises ends the wait.

        Raises:
            TooLittleText: (a ValueError) the text ends before the budget; known as soon as the text was read, not when
                the last shard is asked for.
            BadText: (a ValueError) a document cannot be read.
        """
        if not 0 <= shard < self._num_shards[split]:
            raise ValueError(f"expected a {split} shard below {self._num_shards[split]}")
        windows = self._read(split, shard)
        if windows is None and self._packing is None:
            self._start()
        told = time.monotonic()
        while windows is None:
            check()
            with self._changed:
                done = self._packing is not None and self._packing.done()
                if not done:  # a damaged file is there until packing begins anew: look again soon
                    is_there = shard_path(self.folder, split, shard).exists()
                    self._changed.wait(timeout=0.1 if is_there else min(1.0, TOLD_EVERY_SECONDS))
                    if not is_there and time.monotonic() - told >= TOLD_EVERY_SECONDS:
                        self._tell()
                        told = time.monotonic()
            self._raise_error()
            windows = self._read(split, shard)
            if windows is None and done:
                raise StoreError(
                    f"expected the windows that were just written to {shard_path(self.folder, split, shard)}, found "
                    "none or damaged ones. Check the disk, and harvest again"
                )
        self._raise_error()
        return windows

    def origin(self, split: Split, shard: int, window: int, position: int) -> Origin | None:
        """The document of a position of a window of a shard; None where that is not known."""
        return origin_of(shard_path(self.folder, split, shard), self._spec, window, position)

    def account(self) -> TextAccount:
        """What became of the text; waits until every window is there."""
        account = self._kept_account()
        if account is not None:
            return account
        self._start()
        assert self._packing is not None
        return self._packing.result()

    def _read(self, split: Split, shard: int) -> Tokens | None:
        windows = read_shard(self.folder, split, shard, context_length=self._spec.context_length)
        return windows if windows is not None and len(windows) == self._shard_windows(split, shard) else None

    def _shard_windows(self, split: Split, shard: int) -> int:
        return min(self._per_shard, self._num_windows[split] - shard * self._per_shard)

    def _raise_error(self) -> None:
        if self._packing is not None and self._packing.done():
            self._packing.result()

    def _start(self) -> None:
        if self._packing is None:
            self._packing = self._executor.submit(self._pack)
            self._packing.add_done_callback(lambda _: self._notify())

    def _tell(self) -> None:
        num_windows = sum(self._num_windows.values())
        print(
            f"tokens: {self._num_filled:,} of {num_windows:,} windows are packed; the model waits for the next",
            file=sys.stderr,
        )

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _pack(self) -> TextAccount:
        """Runs in the thread."""
        state = self._kept_state()
        if state is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        tokenizer = self._load_tokenizer()
        has_new_shard = False

        def keep(split: Split, shard: int, windows: Tokens) -> None:
            nonlocal has_new_shard
            write_shard(self.folder, split, shard, windows)
            has_new_shard = True
            self._notify()

        def keep_documents(split: Split, shard: int, starts: list[Start]) -> None:
            write_documents(shard_path(self.folder, split, shard), starts, lambda part: self._text.parts[part].name)

        def check() -> None:
            if self._given_up.is_set():
                raise _GivenUp

        def progress() -> None:
            check()
            self._num_filled = packer.num_filled

        def keep_state() -> None:
            nonlocal has_new_shard
            if has_new_shard:
                write_record_file(self.folder / STATE_FILE, packer.state())
                has_new_shard = False

        packer = Packer(
            self._text,
            tokenizer,
            bos_token_id=self._spec.window_bos,
            vocab_size=self._spec.model.vocab_size,
            context_length=self._spec.context_length,
            rows_per_window=self._spec.rows_per_sequence,
            num_windows=self._num_windows,
            windows_per_shard=self._per_shard,
            num_spare=self._num_spare,
            held_out_fraction=self._spec.held_out_fraction,
            separator_id=self._separator_id(tokenizer),
            on_shard=keep,
            on_documents=keep_documents,
            state=state,
        )
        account = packer.run(on_progress=progress, on_batch=keep_state, check=check)
        keep_account(self.folder, account)
        return account

    def _kept_account(self) -> TextAccount | None:
        try:
            return read_record_file(TextAccount, self.folder / ACCOUNT_FILE)
        except (StoreError, FileNotFoundError):
            return None

    def _kept_state(self) -> PackingState | None:
        """Where an earlier run stopped; None where windows that it had made by then are gone or damaged."""
        try:
            state = read_record_file(PackingState, self.folder / STATE_FILE)
        except (StoreError, FileNotFoundError):
            return None
        if len(state.parts) != len(self._text.parts):
            return None
        for split in SPLITS:
            num_tokens = state.streams[split].num_tokens
            per_shard = self._per_shard * self._spec.text_tokens_per_sequence
            is_full = num_tokens == self._num_windows[split] * self._spec.text_tokens_per_sequence
            num_shards = self._num_shards[split] if is_full else num_tokens // per_shard
            if any(self._read(split, shard) is None for shard in range(num_shards)):
                return None
        return state
