"""A stream of tokens, cut into shards of windows as it comes. Memory holds the tokens of one shard."""

import base64
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from harvest.documents import Start, cut_starts
from store.identity import Count
from store.record import Record

Tokens = NDArray[np.uint32]


class StreamState(Record):
    """Where one stream of tokens stands."""

    num_tokens: Count
    """Taken so far."""
    rest: str
    """Those that are in no complete shard yet: little-endian uint32 in base64."""
    documents: tuple[Start, ...] = ()
    """That those tokens come from; not known where an earlier version wrote the state."""


class ShardStream:
    """Cuts token pieces of any length into shards of windows, up to a number of windows; the rest is ignored.

    Every window begins with `bos_token_id`, unless that is None.
    """

    def __init__(
        self,
        *,
        num_windows: int,
        context_length: int,
        windows_per_shard: int,
        bos_token_id: int | None,
        on_shard: Callable[[int, Tokens, list[Start]], object],
        state: StreamState | None = None,
    ) -> None:
        self.num_windows = num_windows
        self._context_length = context_length
        self._num_bos = 0 if bos_token_id is None else 1
        self._per_window = context_length - self._num_bos
        self._per_shard = windows_per_shard
        self._bos_token_id = bos_token_id
        self._on_shard = on_shard
        self.num_tokens = 0 if state is None else state.num_tokens
        rest = np.frombuffer(b"" if state is None else base64.b64decode(state.rest), dtype="<u4").astype(np.uint32)
        self._rest: list[Tokens] = [rest] if len(rest) else []
        self._num_rest = len(rest)
        self._starts = [] if state is None else list(state.documents)
        self._shard = (self.num_tokens - len(rest)) // (windows_per_shard * self._per_window)

    @property
    def is_full(self) -> bool:
        """Whether every window is filled."""
        return self.num_tokens == self.num_windows * self._per_window

    @property
    def num_filled(self) -> int:
        """Complete windows."""
        return self.num_tokens // self._per_window

    @property
    def num_waiting(self) -> int:
        """Tokens that are in no complete shard yet."""
        return self._num_rest

    def begin(self, part: int, number: int) -> None:
        """Says that the next tokens are of another document."""
        if not self.is_full:
            self._starts.append((self._num_rest, part, number))

    def add(self, token_ids: Tokens) -> int:
        """Appends `token_ids` (tokens,); returns how many of them were wanted."""
        taken = token_ids[: self.num_windows * self._per_window - self.num_tokens]
        if len(taken):
            self._rest.append(taken)
            self._num_rest += len(taken)
            self.num_tokens += len(taken)
        while self._num_rest and self._num_rest >= (wanted := self._tokens_of_shard()):
            stream = np.concatenate(self._rest)
            windows = np.empty((wanted // self._per_window, self._context_length), dtype=np.uint32)
            if self._bos_token_id is not None:
                windows[:, 0] = self._bos_token_id
            windows[:, self._num_bos :] = stream[:wanted].reshape(-1, self._per_window)
            starts, self._starts = cut_starts(self._starts, wanted)
            self._on_shard(self._shard, windows, starts)
            self._shard += 1
            self._rest = [stream[wanted:]]
            self._num_rest -= wanted
        return len(taken)

    def state(self) -> StreamState:
        """Where it stands."""
        rest = np.concatenate([np.empty(0, dtype=np.uint32), *self._rest]).astype("<u4")
        encoded = base64.b64encode(rest.tobytes()).decode()
        return StreamState(num_tokens=self.num_tokens, rest=encoded, documents=tuple(self._starts))

    def _tokens_of_shard(self) -> int:
        return min(self._per_shard, self.num_windows - self._shard * self._per_shard) * self._per_window
