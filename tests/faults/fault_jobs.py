"""The processes that store_faults.py kills, starves and watches: each job runs in a process of its own.

    python tests/faults/fault_jobs.py INPUTS.npz     then one JSON list of jobs a line on standard input

A process with the imports behind it and without threads forks one process for each job of a list, all at once, kills
those that are to be killed, and answers with a JSON list of how they ended: {"exit": code or -signal, ...}.
"""

import hashlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harvest.moments import shard_sums
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS
from store.care.verify import verify
from store.codec.names import CodecName
from store.codec.registry import decode_chunk, encode_chunk
from store.identity import ModelIdentity
from store.lease import exclusive_lock
from store.read.cache import ActivationCache
from store.write.writer import CacheWriter

HOOKS = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
NUM_HELD_OUT = 3

Inputs = dict[str, NDArray[Any]]
Job = dict[str, Any]


def make_spec(inputs: Inputs, codec: CodecName) -> CacheSpec:
    """A spec for the inputs, with several small shards of several chunks each."""
    model = ModelIdentity(
        name="faults",
        revision=None,
        weights_sha256="0" * 64,
        tokenizer_sha256="0" * 64,
        d_model=inputs[HOOKS[0]].shape[1],
        num_layers=3,
        vocab_size=2**18,
        bos_token_id=0,
    )
    return CacheSpec(
        model=model,
        hooks=HOOKS,
        text={"kind": "faults"},
        context_length=inputs["tokens"].shape[1],
        excluded_positions=("bos",),
        packing="as given",
        held_out_fraction=0.1,
        compute_dtype="float32",
        forward_batch_sequences=1,
        sequences_per_chunk=2,
        chunks_per_shard=4,
        codec=codec,
        harvest_version=1,
    )


def write_cache(folder: Path, inputs: Inputs, codec: CodecName) -> None:
    """Writes, or goes on writing, the cache `folder`/cache under the lease of `folder`."""
    spec = make_spec(inputs, codec)
    num_sequences = len(inputs["tokens"]) - NUM_HELD_OUT
    with (
        exclusive_lock(folder) as lease,
        CacheWriter(
            folder / "cache",
            spec,
            num_sequences=num_sequences,
            num_held_out_sequences=NUM_HELD_OUT,
            num_threads=1,
            lease=lease,
        ) as writer,
    ):
        for split in SPLITS:
            for shard in writer.missing_shards(split):
                start = shard * spec.sequences_per_shard + (num_sequences if split == "held_out" else 0)
                end = start + writer.shard_sequences(shard, split)
                per_sequence = spec.rows_per_sequence
                rows = {hook: inputs[hook][start * per_sequence : end * per_sequence] for hook in HOOKS}
                sums = {
                    hook: shard_sums(values, hook=hook, first_sequence=start, rows_per_sequence=per_sequence)
                    for hook, values in rows.items()
                }
                writer.submit_shard(shard, split=split, tokens=inputs["tokens"][start:end], rows=rows, sums=sums)
        writer.finish()


def read_cache(cache: ActivationCache) -> str:
    """A digest of everything that the reader gives: tokens, rows by number, and an epoch of batches."""
    hasher = hashlib.sha256()
    for split in SPLITS:
        hasher.update(cache.tokens(split=split).tobytes())
        for hook in HOOKS:
            numbers = np.arange(cache.manifest.split_rows(split))
            hasher.update(cache.rows(hook, numbers, split=split, num_threads=1).tobytes())
    with cache.aligned_batches(HOOKS, batch_rows=64, seed=0, num_epochs=1, pool_bytes=2**20, num_threads=1) as stream:
        for batch in stream:
            for rows in batch:
                hasher.update(rows.tobytes())
    return hasher.hexdigest()


def _truncate(path: Path, num_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(num_bytes)


def run_job(job: Job, inputs: Inputs) -> Job:
    """One job, in this process: write, verify or read. An error of people or files is an answer, others are crashes."""
    folder = Path(job["folder"])
    try:
        if job["kind"] == "write":
            if (limit := job.get("max_file_bytes")) is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            time.sleep(max(0.0, job.get("begin", 0.0) - time.time()))
            write_cache(folder, inputs, job["codec"])
        elif job["kind"] == "verify":
            return {"problems": verify(folder, full=True, num_threads=1)}
        elif job["kind"] == "read":
            return {"digest": read_cache(ActivationCache(folder, mode=job["mode"]))}
        else:  # truncated while it is open
            cache = ActivationCache(folder, mode="pread")
            _truncate(Path(job["path"]), job["num_bytes"])
            return {"digest": read_cache(cache)}
    except (ValueError, OSError) as error:
        return {"error": str(error), "type": type(error).__name__}
    return {}


def main() -> None:
    """Answers lists of jobs until the input ends."""
    with np.load(sys.argv[1], allow_pickle=False) as file:
        inputs = {name: file[name] for name in file.files}
    rows = inputs[HOOKS[0]][:16]
    chunk = np.frombuffer(encode_chunk("bf16_planes_v1", rows), dtype=np.uint8)  # compiled once, before forking
    decode_chunk("bf16_planes_v1", chunk, rows.shape, np.empty_like(rows), np.arange(len(rows)))
    shard_sums(rows, hook=HOOKS[0], first_sequence=0, rows_per_sequence=inputs["tokens"].shape[1] - 1)
    for line in sys.stdin:
        print(json.dumps(_run_all(json.loads(line), inputs)), flush=True)


def _run_all(jobs: list[Job], inputs: Inputs) -> list[Job]:
    started = [_start(job, inputs) for job in jobs]
    begin = time.monotonic()
    for job, (process, _) in zip(jobs, started, strict=True):
        if (seconds := job.get("kill_after")) is not None:
            time.sleep(max(0.0, begin + seconds - time.monotonic()))
            os.kill(process, signal.SIGKILL)  # at worst it has ended, and waits to be asked how
    answers = []
    for process, reading in started:
        with os.fdopen(reading) as pipe:
            text = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        answers.append({"exit": code, "process": process, **(json.loads(text) if code == 0 and text else {})})
    return answers


def _start(job: Job, inputs: Inputs) -> tuple[int, int]:
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return process, reading
    os.close(reading)
    code = 1
    try:
        with os.fdopen(writing, "w") as pipe:
            sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - progress bars, until the process ends
            pipe.write(json.dumps(run_job(job, inputs)))
        code = 0
    finally:
        if code:
            traceback.print_exc(file=sys.__stderr__)
        os._exit(code)


if __name__ == "__main__":
    main()
