"""Speed of writing a cache against its limits, in one run: the codec with checksums alone, and a plain write.

    python benchmarks/writer.py [--input FILE.npy] [--threads 2] [--folder /dev/shm] [--json]

`limit` is the smaller of (codec + crc32c + SHA-256 of the same rows on the same threads, nothing written) and (plain
write + fsync of the same bytes, file by file). The writer does both, permutes the rows, and commits shard after shard.
All three are measured in turns, in a folder of the working directory and again in --folder (a tmpfs by default).
"""

import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench import CONTEXT, HOOK, best_of, finish, machine, parser, rows_to_measure, spec_for, table
from numpy.typing import NDArray

from harvest.moments import shard_sums
from store.cache.moments import ShardSums
from store.cache.spec import CacheSpec
from store.codec.checksum import crc32c
from store.codec.names import CodecName
from store.codec.registry import encode_chunk_parts
from store.write.writer import CacheWriter

CODEC: CodecName = "bf16_planes_v1"


def main() -> None:
    """Parses the command line, measures, prints."""
    arguments = parser(__doc__)
    arguments.set_defaults(rounds=5)
    arguments.add_argument("--threads", type=int, default=2, help="that encode (%(default)s)")
    arguments.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="second place (%(default)s)")
    arguments.add_argument("--megabytes", type=int, default=1000, help="of rows to write (%(default)s)")
    options = arguments.parse_args()
    rows = rows_to_measure(options)
    figures: dict[str, Any] = {"threads": options.threads, "d_model": rows.shape[1], "places": {}}
    for place, parent in (("disk", Path()), ("tmpfs", options.folder)):
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            figures["places"][place] = measure(
                Path(folder), rows, megabytes=options.megabytes, threads=options.threads, rounds=options.rounds
            )
    figures["machine"] = machine("zarr", "zstandard")
    print(f"{rows.shape[1]} channels, {options.threads} threads, MB/s of raw bfloat16")
    table(
        ("place", "codec + checksums", "write + fsync", "writer", "of the limit"),
        [
            (
                place,
                *(measured[key] for key in ("codec_mb_per_s", "write_mb_per_s", "writer_mb_per_s", "share_of_limit")),
            )
            for place, measured in figures["places"].items()
        ],
    )
    finish(figures, options)


def measure(folder: Path, rows: NDArray[np.uint16], *, megabytes: int, threads: int, rounds: int) -> dict[str, float]:
    """MB/s of raw rows through each of the three, written below `folder`."""
    spec = spec_for(rows.shape[1])
    rows = rows[: len(rows) // spec.rows_per_sequence * spec.rows_per_sequence]
    shards = shards_of(rows, spec, num_rows=megabytes * 10**6 // (2 * rows.shape[1]))
    sums = [sums_of(shard) for shard in shards]
    files = [file for shard in encode_all(shards, spec, threads=threads) for file in [b"".join(shard)]]
    raw = sum(shard.nbytes for shard in shards)
    seconds = best_of(
        rounds,
        {
            "codec": partial(encode_all, shards, spec, threads=threads),
            "write": partial(write_all, folder, files),
            "writer": partial(write_cache, folder, shards, sums, spec, threads=threads),
        },
    )
    rates = {f"{name}_mb_per_s": raw / value / 1e6 for name, value in seconds.items()}
    limit = min(rates["codec_mb_per_s"], rates["write_mb_per_s"])
    return {
        **rates,
        "share_of_limit": rates["writer_mb_per_s"] / limit,
        "raw_bytes": raw,
        "file_bytes": sum(map(len, files)),
    }


def shards_of(rows: NDArray[np.uint16], spec: CacheSpec, *, num_rows: int) -> list[NDArray[np.uint16]]:
    """Full shards of at least `num_rows` rows in all, cut from `rows` again and again."""
    per_shard = spec.rows_per_shard
    numbers = np.arange(max(1, round(num_rows / per_shard)) * per_shard) % len(rows)
    return [rows[numbers[at : at + per_shard]] for at in range(0, len(numbers), per_shard)]


def sums_of(rows: NDArray[np.uint16]) -> dict[str, ShardSums]:
    """What a producer hands over with its rows; made before anything is timed, but for one sequence."""
    return {HOOK: shard_sums(rows, hook=HOOK, first_sequence=0, rows_per_sequence=CONTEXT - 1)}


def encode_all(shards: list[NDArray[np.uint16]], spec: CacheSpec, *, threads: int) -> list[list[bytes | memoryview]]:
    """The bytes of every shard: chunks with their crc32c, encoded in threads, and a SHA-256 per shard in a thread."""

    def encode(chunk: NDArray[np.uint16]) -> list[bytes | memoryview]:
        parts = encode_chunk_parts(CODEC, chunk)
        return [*parts, crc32c(parts)]

    def digest(parts: list[bytes | memoryview]) -> None:
        hasher = hashlib.sha256()
        for part in parts:
            hasher.update(part)

    per_chunk = spec.rows_per_chunk
    with ThreadPoolExecutor(threads) as pool:
        encoded, digests = [], []
        for shard in shards:
            chunks = pool.map(encode, (shard[at : at + per_chunk] for at in range(0, len(shard), per_chunk)))
            encoded.append([part for chunk in chunks for part in chunk])
            digests.append(pool.submit(digest, encoded[-1]))
        for future in digests:
            future.result()
    return encoded


def write_all(folder: Path, files: list[bytes]) -> None:
    """Writes and syncs the same bytes, one file after another, and does nothing else with them."""
    target = Path(tempfile.mkdtemp(dir=folder))  # a new one each time: removing the last one is no part of writing
    for number, data in enumerate(files):
        with (target / str(number)).open("wb", buffering=0) as file:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())


def write_cache(
    folder: Path, shards: list[NDArray[np.uint16]], sums: list[dict[str, ShardSums]], spec: CacheSpec, *, threads: int
) -> None:
    """A whole cache of the shards, the first of which serves as the held-out one too."""
    num_sequences = sum(map(len, shards)) // spec.rows_per_sequence
    target = Path(tempfile.mkdtemp(dir=folder)) / "cache"
    with CacheWriter(
        target,
        spec,
        num_sequences=num_sequences,
        num_held_out_sequences=1,
        num_threads=threads,
    ) as writer:
        for shard, rows in enumerate(shards):
            tokens = np.zeros((len(rows) // spec.rows_per_sequence, CONTEXT), dtype=np.uint32)
            writer.submit_shard(shard, tokens=tokens, rows={HOOK: rows}, sums=sums[shard])
        held_out = shards[0][: spec.rows_per_sequence]
        writer.submit_shard(
            0, split="held_out", tokens=np.zeros((1, CONTEXT), dtype=np.uint32), rows={HOOK: held_out},
            sums=sums_of(held_out),
        )  # fmt: skip
        writer.finish()


if __name__ == "__main__":
    main()
