"""Where the missing shards of a harvest are computed: in this process, or on the workers of a Dask cluster."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compute.cluster import connect, local_cluster, workers_of
from compute.progress import phase, progress, say
from compute.stop import stop_on_signals
from harvest.activations import RowModel
from harvest.inputs import Inputs
from harvest.partitions import Job, harvest_on_workers, harvest_software, probe_on_worker
from harvest.probe import Estimate, Probe, probe
from harvest.shards import (
    MAX_PENDING_BYTES,
    ShardPlace,
    Stopped,
    harvest_shards,
    load_cut,
    missing_hooks,
    missing_rows,
    missing_shards,
)
from harvest.synthetic import SampleNumbers
from harvest.windows import WindowSource
from store.lease import Lease
from store.write.writer import CacheWriter


@dataclass(frozen=True)
class HarvestResources:
    """With what a harvest is computed. None of it decides a byte."""

    device: str
    """Name of a torch device."""
    scheduler: str | None = None
    """Address of a Dask scheduler whose workers harvest."""
    num_workers: int | None = None
    """Worker processes to start on this machine, where no scheduler is named; None for none."""
    num_threads: int | None = None
    """Of torch's products in each process; None leaves it to torch."""

    @property
    def on_cluster(self) -> bool:
        return self.scheduler is not None or self.num_workers is not None


@dataclass(frozen=True)
class Missing:
    """What a harvest still has to compute."""

    writer: CacheWriter
    shards: list[ShardPlace]
    windows: WindowSource | SampleNumbers
    inputs: Inputs
    place: Path
    """The folder whose lease is held."""
    lease: Lease

    @property
    def folder(self) -> Path:
        """Of this harvest: cache, windows, what workers say."""
        return self.writer.folder.parent

    @property
    def hooks(self) -> tuple[str, ...]:
        """That the model computes: one at least, where only tokens are missing."""
        return missing_hooks(self.writer, self.shards) or self.writer.spec.hooks[:1]

    @property
    def num_tokens(self) -> int:
        """That the model has to read, BOS included."""
        spec = self.writer.spec
        return missing_rows(self.writer, self.shards) // spec.rows_per_sequence * spec.context_length


@dataclass(frozen=True)
class Done:
    """How it went."""

    seconds: float
    """The loading of the model left out."""
    num_workers: int


def compute_missing(missing: Missing, resources: HarvestResources, *, estimate_only: bool) -> Done | None:
    """Says what it will take and computes it; None with `estimate_only`.

    Raises:
        ValueError: it cannot fit.
        SystemExit: somebody asked to stop. What was computed is committed.
    """
    missing.windows.start()
    compute = _on_cluster if resources.on_cluster else _here
    return compute(missing, resources, estimate_only)


def _here(missing: Missing, resources: HarvestResources, estimate_only: bool) -> Done | None:
    writer, device = missing.writer, resources.device
    if resources.num_threads is not None:
        torch.set_num_threads(resources.num_threads)
    with stop_on_signals() as request:

        def check() -> None:
            if request.reason() is not None:
                raise Stopped

        try:
            model = load_cut(missing.inputs.model_folder, writer.spec, missing.hooks, device=device)
            check()
            with phase("harvest", "probing the model, the codec and the disk"):
                tokens = missing.windows.shard("training", 0, check=check)
                found = probe(
                    model, writer.spec, tokens, folder=missing.folder, device=device,
                    num_tokens=missing.num_tokens, thorough=estimate_only,
                )  # fmt: skip
            check()
            _announce(missing, found, num_workers=1)
            return None if estimate_only else _compute(missing, model, device=device, check=check)
        except Stopped:
            writer.wait()
            num_done = len(missing.shards) - len(missing_shards(writer))
            raise SystemExit(
                f"harvest: stopped by {request.reason()} after {num_done} of {len(missing.shards)} shards. Run the "
                "same command again to continue"
            ) from None


def _compute(missing: Missing, model: RowModel, *, device: str, check: Callable[[], object]) -> Done:
    writer, started = missing.writer, time.monotonic()
    total = (writer.num_sequences + writer.num_held_out_sequences) * writer.spec.rows_per_sequence
    with progress("harvest", total=total, unit="row", done=total - missing_rows(writer, missing.shards)) as count:

        def on_rows(_place: ShardPlace, num_rows: float, finished: bool) -> None:
            (count.update if finished else count.within)(num_rows)
            if writer.stored_bytes:
                count.detail(f"compressed {writer.raw_bytes / writer.stored_bytes:.2f} times")

        harvest_shards(
            writer,
            missing.shards,
            model,
            windows=lambda split, shard: missing.windows.shard(split, shard, check=check),
            origin=missing.windows.origin,
            device=device,
            on_rows=on_rows,
            check=check,
        )
        writer.wait()
    return Done(time.monotonic() - started, num_workers=1)


def _on_cluster(missing: Missing, resources: HarvestResources, estimate_only: bool) -> Done | None:
    writer = missing.writer
    job = Job(
        spec=writer.spec,
        model_folder=None if missing.inputs.model_folder is None else missing.inputs.model_folder.resolve(),
        hooks=missing.hooks,
        place=missing.place.resolve(),
        token=missing.lease.token,
        folder=missing.folder.resolve(),
        num_sequences=writer.num_sequences,
        num_held_out_sequences=writer.num_held_out_sequences,
        device=resources.device,
        num_threads=resources.num_threads or _share_of_threads(resources),
        software=harvest_software(),
    )
    with _cluster(resources, scratch=missing.folder / "dask") as client:
        with phase("harvest", "probing the model, the codec and the disk on a worker"):
            tokens = missing.windows.shard("training", 0)
            found = probe_on_worker(client, job, tokens, num_tokens=missing.num_tokens, thorough=estimate_only)
        num_workers = len(workers_of(client))
        _announce(missing, found, num_workers=num_workers)
        if estimate_only:
            return None
        started = time.monotonic()
        stopped = harvest_on_workers(client, writer, missing.shards, missing.windows, job)
    if stopped is not None:
        raise SystemExit(f"harvest: {stopped}. Run the same command again to continue")
    return Done(time.monotonic() - started, num_workers=num_workers)


def _share_of_threads(resources: HarvestResources) -> int | None:
    """Workers of one machine share its cores; others are left to those who started them."""
    if resources.scheduler is not None or resources.num_workers is None:
        return None
    return max(1, (os.cpu_count() or 1) // resources.num_workers)


@contextlib.contextmanager
def _cluster(resources: HarvestResources, *, scratch: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        address = resources.scheduler
        if address is None:
            assert resources.num_workers is not None
            with phase("harvest", f"starting {resources.num_workers} workers"):
                address = stack.enter_context(local_cluster(resources.num_workers, scratch=scratch))
        yield stack.enter_context(connect(address))


def _announce(missing: Missing, found: Probe, *, num_workers: int) -> None:
    """Says what the harvest will take; ValueError where it cannot fit."""
    writer, spec = missing.writer, missing.writer.spec
    all_rows = (writer.num_sequences + writer.num_held_out_sequences) * spec.rows_per_sequence
    hook_bytes = 2 * spec.model.d_model * min(spec.rows_per_shard, all_rows)
    shard_bytes, all_bytes = len(missing.hooks) * hook_bytes, len(missing.hooks) * 2 * spec.model.d_model * all_rows
    estimate = Estimate(
        probe=found,
        hooks=missing.hooks,
        d_model=spec.model.d_model,
        num_tokens=missing.num_tokens,
        num_rows=missing_rows(writer, missing.shards, per_hook=True),
        all_tokens=all_rows // spec.rows_per_sequence * spec.context_length,
        all_rows=all_rows,
        num_hooks=len(spec.hooks),
        free_bytes=shutil.disk_usage(missing.folder).free,
        row_memory_bytes=shard_bytes + max(shard_bytes, min(MAX_PENDING_BYTES, all_bytes)),
        num_workers=num_workers,
    )
    for line in estimate.lines():
        say("harvest", line)
    estimate.refuse_what_cannot_fit(missing.folder)
