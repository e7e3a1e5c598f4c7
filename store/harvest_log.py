"""How a cache came about: which runs of the harvest made it, how long they took, and how fast.

It lies beside the cache, not in it, and is no part of any digest: two harvests of the same spec give the same bytes and
take different times.
"""

from pathlib import Path

from store.errors import StoreError
from store.identity import Count, Sha256, Size
from store.record import Record
from store.record_file import read_record_file, write_record_file


class HarvestRun(Record):
    """One run that computed shards of a cache and came to its end, or was stopped and could say so."""

    finished: str
    """UTC, to the second."""
    host: str
    device: str
    num_workers: Size
    """1 without a cluster."""
    seconds: float
    """From the first forward pass to the last shard on disk, the loading of the model left out."""
    num_tokens: Count
    """Through the model, BOS included."""
    num_shards: Count
    """Computed; the others were there."""
    hooks: tuple[str, ...]
    """Whose rows were written."""
    raw_bytes: Count
    """Of the rows that were written, as plain bfloat16."""
    torch: str

    @property
    def tokens_per_second(self) -> float:
        """0 where no time passed."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0


class HarvestLog(Record):
    """The runs that a cache is made of. One that was killed leaves its shards and no entry."""

    cache_digest: Sha256
    """Of the manifest."""
    runs: tuple[HarvestRun, ...]
    """Oldest first."""

    def lines(self) -> list[str]:
        """A line for each run."""
        return [
            f"{run.finished}: {run.num_tokens:,} tokens in {run.seconds:,.1f} s ({run.tokens_per_second:,.0f} "
            f"tokens/s) on {run.device} of {run.host}"
            + (f" and {run.num_workers} workers" if run.num_workers > 1 else "")
            + f"; {run.num_shards} shards of {', '.join(run.hooks)}"
            for run in self.runs
        ]


def harvest_log_path(cache: Path) -> Path:
    """Where the log of the cache in a folder is."""
    return cache.with_name(f"{cache.name}.log.json")


def read_harvest_log(cache: Path, *, digest: str | None = None) -> HarvestLog | None:
    """The log beside the cache in a folder; None where there is none, or none of the data with this manifest digest."""
    try:
        log = read_record_file(HarvestLog, harvest_log_path(cache))
    except (StoreError, FileNotFoundError):
        return None
    return log if digest in (None, log.cache_digest) else None


def write_harvest_log(cache: Path, log: HarvestLog) -> None:
    """Keeps the log of the cache in a folder."""
    write_record_file(harvest_log_path(cache), log)
