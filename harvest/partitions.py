"""A harvest on the workers of a Dask cluster, which see the same folders under the same paths.

Every worker takes a range of shards at a time, computes it with its own language model, and commits each shard in the
one folder where the cache grows. A shard's bytes depend on its own windows only, and its record is written last: so it
matters neither which worker makes a shard, nor whether one that died had half of it, nor whether two make it.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compute.cluster import refuse_other_software, run_on_workers, worker_name, workers_of
from compute.progress import progress
from compute.software import Software, software_here
from compute.stop import StopRequest
from harvest.activations import RowModel
from harvest.documents import Origin, origin_of
from harvest.probe import Probe, probe
from harvest.shards import MAX_PENDING_BYTES, ShardPlace, Stopped, harvest_shards, load_cut, missing_rows
from harvest.streams import Tokens
from harvest.synthetic import SampleNumbers, sample_numbers
from harvest.version import HARVEST_VERSION
from harvest.windows import ACCOUNT_FILE, WindowSource, read_shard, shard_path
from language_model.identity import weights_digest
from store.atomic import write_bytes
from store.cache.paths import shard_record_path
from store.cache.spec import CacheSpec
from store.cache.split import Split
from store.errors import MismatchedCache, StoreError
from store.lease import SharedLease
from store.write.growing import GrowingCache, Taken
from store.write.writer import CacheWriter

PARTITIONS_PER_WORKER = 8
"""So that one that is slow, or late, holds up no other for long."""
MAX_SHARDS = 16
"""Of a partition."""


_loaded: dict[tuple[Path | None, str, tuple[str, ...]], RowModel] = {}
"""The language model of this worker; one at most."""


@dataclass(frozen=True)
class Job:
    """What all partitions of a harvest share: plain data that travels to workers."""

    spec: CacheSpec
    model_folder: Path | None
    """None where rows are made from known features."""
    hooks: tuple[str, ...]
    """That the model computes."""
    place: Path
    """The folder whose lease the harvest holds."""
    token: str
    """Of that lease."""
    folder: Path
    """Where the cache grows, in `cache`, and its windows are kept, in `windows`."""
    num_sequences: int
    num_held_out_sequences: int
    device: str
    num_threads: int | None
    """Of torch's products in one worker; None leaves it to the worker."""
    software: Software

    @property
    def stop_file(self) -> Path:
        """While it exists, workers stop."""
        return self.folder / "stop"


@dataclass(frozen=True)
class Partition:
    """Consecutive shards of one harvest."""

    job: Job
    shards: tuple[ShardPlace, ...]
    taken: Taken
    """Rows of these shards that another cache gave."""


def harvest_software() -> Software:
    """The code and packages with which this process harvests."""
    return software_here(HARVEST_VERSION.files)


def partitions_of(shards: Sequence[ShardPlace], *, num_workers: int) -> list[tuple[ShardPlace, ...]]:
    """Disjoint ranges of the shards, in their order, which is the order in which their text is packed."""
    size = max(1, min(MAX_SHARDS, len(shards) // (PARTITIONS_PER_WORKER * num_workers)))
    return [tuple(shards[start : start + size]) for start in range(0, len(shards), size)]


def probe_on_worker(
    client: Any,  # noqa: ANN401 - distributed has no types
    job: Job,
    tokens: Tokens,
    *,
    num_tokens: int,
    thorough: bool,
) -> Probe:
    """What one worker of the cluster finds out about the harvest, before it starts."""
    refuse_other_software(client, job.software, harvest_software)
    found: Probe = client.submit(_probe, job, tokens, num_tokens, thorough, pure=False).result()
    return found


def _probe(job: Job, tokens: Tokens, num_tokens: int, thorough: bool) -> Probe:
    model, device = _model(job), _device_here(job.device)
    return probe(model, job.spec, tokens, folder=job.folder, device=device, num_tokens=num_tokens, thorough=thorough)


def harvest_on_workers(
    client: Any,  # noqa: ANN401 - distributed has no types
    cache: GrowingCache,
    shards: Sequence[ShardPlace],
    windows: WindowSource | SampleNumbers,
    job: Job,
) -> str | None:
    """Commits the shards to `cache` on the workers; what stopped them, if anything did.

    Args:
        client: of compute.cluster.connect.
        cache: as this process sees it.
        shards: that it lacks.
        windows: packed by this process, for all.
        job: what all partitions share.
    """
    refuse_other_software(client, job.software, harvest_software)
    taken = cache.taken
    partitions = [
        Partition(job, part, {place: taken[place] for place in part if place in taken})
        for part in partitions_of(shards, num_workers=max(1, len(workers_of(client))))
    ]
    num_left = {partition.shards: len(partition.shards) for partition in partitions}
    rows = {place: missing_rows(cache, [place]) for place in shards}
    total = (cache.num_sequences + cache.num_held_out_sequences) * cache.spec.rows_per_sequence

    def got_on(partition: Partition) -> bool:
        left = sum(not _is_committed(job, place) for place in partition.shards)
        before, num_left[partition.shards] = num_left[partition.shards], left
        return left < before

    (job.folder / "progress").mkdir(parents=True, exist_ok=True)
    with progress("harvest", total=total, unit="row", done=total - sum(rows.values())) as count:
        done_before = count.done

        def look() -> None:
            windows.check()
            count.reach(done_before + sum(_rows_done(job, place, rows[place]) for place in shards))

        stopped = run_on_workers(
            client,
            harvest_partition,
            partitions,
            stop_file=job.stop_file,
            describe=lambda partition: f"the harvest of {_named(partition.shards)}",
            on_wait=look,
            begin_again=got_on,
        )
        look()
    return stopped


def harvest_partition(partition: Partition) -> str | None:
    """Commits the shards of a partition that are not there yet; or says what stopped it. Runs on a worker.

    Raises:
        OtherSoftware: (a ValueError) this worker has other code or packages than the process that planned the harvest.
        LostLease: that process has ended.
    """
    job = partition.job
    job.software.refuse_other(harvest_software())
    lease = SharedLease(job.place, job.token)
    lease.check()
    request = StopRequest(job.stop_file)

    def check() -> None:
        if request.reason() is not None:
            raise Stopped

    with CacheWriter(
        job.folder / "cache",
        job.spec,
        num_sequences=job.num_sequences,
        num_held_out_sequences=job.num_held_out_sequences,
        max_pending_bytes=MAX_PENDING_BYTES,
        lease=lease,
        taken=partition.taken,
    ) as writer:
        shards = [(split, shard) for split, shard in partition.shards if writer.committed(shard, split) is None]
        if not shards:
            return None  # an earlier try of this partition did them
        try:
            harvest_shards(
                writer,
                shards,
                _model(job),
                windows=functools.partial(_await_windows, job, check=check),
                origin=functools.partial(_origin, job),
                device=_device_here(job.device),
                on_rows=_ProgressFiles(job),
                check=check,
            )
        except Stopped:
            return f"stopped by {request.reason() or 'another'}"
        writer.wait()
    return None


class _ProgressFiles:
    """Says every second, in a small file, how many rows of a shard are computed."""

    def __init__(self, job: Job) -> None:
        self._job, self._rows, self._finished, self._said = job, 0.0, 0.0, 0.0
        self._place: ShardPlace | None = None

    def __call__(self, place: ShardPlace, num_rows: float, finished: bool) -> None:
        if place != self._place:
            self._place, self._rows, self._finished = place, 0.0, 0.0
        self._finished += num_rows if finished else 0.0
        self._rows = self._finished if finished else self._rows + num_rows
        if time.monotonic() - self._said >= 1.0:
            self._said = time.monotonic()
            with contextlib.suppress(OSError):  # nothing depends on it
                write_bytes(_progress_file(self._job, place), f"{self._rows:.0f}".encode())


def _progress_file(job: Job, place: ShardPlace) -> Path:
    return job.folder / "progress" / f"{place[0]}-{place[1]:05d}"


def _is_committed(job: Job, place: ShardPlace) -> bool:
    return (job.folder / "cache" / shard_record_path(place[1], place[0])).exists()


def _rows_done(job: Job, place: ShardPlace, num_rows: int) -> float:
    if _is_committed(job, place):
        return num_rows
    try:
        return min(num_rows, float(_progress_file(job, place).read_text() or 0))
    except (OSError, ValueError):
        return 0.0


def _await_windows(job: Job, split: Split, shard: int, *, check: Callable[[], object]) -> Tokens:
    """The windows of a shard, once the process that planned the harvest has packed them."""
    if job.model_folder is None:
        num_sequences = {"training": job.num_sequences, "held_out": job.num_held_out_sequences}[split]
        return sample_numbers(job.spec, split, shard, num_sequences=num_sequences)
    folder = job.folder / "windows"
    while True:
        all_packed = (folder / ACCOUNT_FILE).exists()
        windows = read_shard(folder, split, shard, context_length=job.spec.context_length)
        if windows is not None:
            return windows
        if all_packed:
            raise StoreError(f"expected the windows of {split} shard {shard} in {folder}, found none or damaged ones")
        check()
        time.sleep(0.1)


def _origin(job: Job, split: Split, shard: int, window: int, position: int) -> Origin | None:
    return origin_of(shard_path(job.folder / "windows", split, shard), job.spec, window, position)


def _model(job: Job) -> RowModel:
    """The language model of this worker, loaded once."""
    if job.num_threads is not None:
        torch.set_num_threads(job.num_threads)
    key = (job.model_folder, job.spec.digest, job.hooks)
    if key not in _loaded:
        expected = job.spec.model.weights_sha256
        found = expected if job.model_folder is None else weights_digest(job.model_folder)
        if found != expected:
            raise MismatchedCache(
                f"expected the language model {expected[:12]} in {job.model_folder}, found {found[:12]}: this worker "
                "sees another folder under the same path. Give it the same files"
            )
        _loaded.clear()
        _loaded[key] = load_cut(job.model_folder, job.spec, job.hooks, device=_device_here(job.device))
    return _loaded[key]


def _device_here(device: str) -> str:
    """The device of this worker: on one machine with several GPUs, workers 0, 1, ... take one each."""
    name = worker_name()
    if device != "cuda" or torch.cuda.device_count() < 2 or not isinstance(name, int):
        return device
    return f"cuda:{name % torch.cuda.device_count()}"


def _named(shards: Sequence[ShardPlace]) -> str:
    (split, first), (_, last) = shards[0], shards[-1]
    return f"{split} shards {first} to {last}" if len(shards) > 1 else f"{split} shard {first}"
