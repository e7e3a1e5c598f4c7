"""What a cache holds, in words and numbers, and whether its files are still those that were written."""

import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from store.errors import StoreError
from store.files import Files, LocalFiles
from store.layout import SPLITS, Split
from store.manifest import (
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    Moments,
    ShardRecord,
    ShardSums,
    combine_moments,
    load_manifest,
    shard_record_path,
    split_folder,
)
from store.record import plain
from store.sealed import check_small, parse_sealed

_BLOCK_NBYTES = 4 * 2**20
_METADATA = "zarr.json"
"""Files that the fast check reads too: their few bytes decide how all others are read."""


def summary(location: Path | Files) -> dict[str, Any]:
    """All that is known of a cache without reading its rows, as JSON types: what `store info --json` prints."""
    files = _files(location)
    manifest = load_manifest(files)
    spec = manifest.spec
    num_tokens = manifest.num_sequences * spec.context_length
    raw_nbytes = 2 * (manifest.num_rows + manifest.split_rows("held_out")) * spec.model.d_model
    return {
        "location": files.location,
        "format": manifest.format,
        "data_digest": manifest.digest,
        "spec_digest": spec.digest,
        "spec": plain(spec),
        "num_sequences": manifest.num_sequences,
        "num_tokens": num_tokens,
        "num_held_out_sequences": manifest.num_held_out_sequences,
        "num_held_out_tokens": manifest.num_held_out_sequences * spec.context_length,
        "num_rows": manifest.num_rows,
        "num_held_out_rows": manifest.split_rows("held_out"),
        "num_shards": manifest.num_shards,
        "num_files": len(manifest.files) + 1,
        "nbytes": sum(file.nbytes for file in manifest.files.values()) + (files.size(MANIFEST_FILE) or 0),
        "hooks": {
            hook: {
                "nbytes": hook_nbytes(manifest, hook),
                "raw_nbytes": raw_nbytes,
                "ratio": raw_nbytes / hook_nbytes(manifest, hook),
                **statistics(manifest.moments[hook]),
            }
            for hook in spec.hooks
        },
        "lineage": plain(manifest.lineage),
    }


def statistics(moments: Moments) -> dict[str, float]:
    """E||x||^2, ||E x||, E||x - E x||^2, and the share of that variance in the top 1, the top 10 and the top 1 %."""
    mean, mean_square = np.asarray(moments.mean), np.asarray(moments.mean_square)
    variance = np.sort(np.maximum(mean_square - mean**2, 0.0))[::-1]
    total = float(variance.sum())
    percent = max(1, round(len(variance) / 100))
    shares = {"1": 1, "10": 10, "percent": percent}
    return {
        "mean_squared_norm": moments.mean_squared_norm,
        "norm_of_mean": float(np.linalg.norm(mean)),
        "total_variance": total,
        **{
            f"variance_share_of_top_{name}": float(variance[:number].sum()) / total if total else 0.0
            for name, number in shares.items()
        },
    }


def describe(location: Path | Files) -> str:
    """A page of text about a cache: lineage, rows, sizes, compression and statistics per hook."""
    files = _files(location)
    manifest, known = load_manifest(files), summary(files)
    spec, model = manifest.spec, manifest.spec.model
    lines = [
        f"activation cache {files.location}",
        f"  data digest      {manifest.digest}",
        f"  spec digest      {spec.digest}",
        f"  language model   {model.name}, revision {model.revision or 'local'}, weights {model.weights_sha256[:12]}, "
        f"d_model {model.d_model}, {model.num_layers} layers, computed in {spec.compute_dtype}",
        f"  text             {_shortened(json.dumps(spec.text, sort_keys=True))}",
        f"  packing          {_shortened(spec.packing)}",
        f"  excluded         {', '.join(spec.excluded_positions)}",
        f"  sequences        {manifest.num_sequences:,} of {spec.context_length} tokens for training, "
        f"{manifest.num_held_out_sequences:,} held out (of {spec.held_out_fraction:.1%} of the documents)",
        f"  tokens           {known['num_tokens']:,} for training, {known['num_held_out_tokens']:,} held out",
        f"  shards           {manifest.num_shards} of up to {spec.rows_per_shard:,} rows, chunks of "
        f"{spec.rows_per_chunk:,} rows, codec {spec.codec}",
        f"  on disk          {known['nbytes'] / 1e6:,.1f} MB in {known['num_files']} files",
    ]
    for origin in manifest.lineage:
        changed = f", {', '.join(origin.changed_shards)} changed" if origin.changed_shards else ""
        lines.append(f"  {origin.kind:<16} from {origin.source_digest} ({origin.source_codec}){changed}")
    for hook, facts in known["hooks"].items():
        lines += [
            f"  {hook}: {manifest.num_rows:,} rows, {known['num_held_out_rows']:,} held out, "
            f"{facts['nbytes'] / 1e6:,.1f} MB, {facts['ratio']:.3f} times smaller than raw bfloat16",
            f"    E||x||^2 = {facts['mean_squared_norm']:,.1f}, ||E x|| = {facts['norm_of_mean']:,.2f}, variance "
            f"{facts['total_variance']:,.1f}: {facts['variance_share_of_top_1']:.1%} of it in the top channel, "
            f"{facts['variance_share_of_top_10']:.1%} in the top 10, "
            f"{facts['variance_share_of_top_percent']:.1%} in the top 1 %",
        ]
    return "\n".join(lines)


def _shortened(text: str, length: int = 300) -> str:
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 2 :]}"


def hook_nbytes(manifest: Manifest, hook: str) -> int:
    """Bytes that a hook's shards take on disk."""
    folders = tuple(f"{split_folder(split)}{hook}/c/" for split in SPLITS)
    return sum(file.nbytes for name, file in manifest.files.items() if name.startswith(folders))


def verify(location: Path | Files, *, full: bool, num_threads: int) -> list[str]:
    """Checks every file of a cache; returns one line per file that is not as it was written.

    Args:
        location: of the cache. Its manifest must be whole: a StoreError says what is wrong with it.
        full: also read every byte and compare SHA-256 digests.
        num_threads: files read at once.
    """
    files = _files(location)
    manifest = load_manifest(files)
    problems = find_problems(files, manifest, full=full, num_threads=num_threads)
    return [*problems.values(), *(f"{where}: expected no such file" for where in strangers(files, manifest))]


def find_problems(location: Path | Files, manifest: Manifest, *, full: bool, num_threads: int) -> dict[str, str]:
    """What is wrong with files that the manifest lists, by name: a line that names the file and what was expected.

    The largest files are read first, so that no thread is left alone with one of them at the end.
    """
    files = _files(location)
    sizes = files.sizes()
    names = sorted(manifest.files, key=lambda name: (-manifest.files[name].nbytes, name))
    wanted = {name for name in names if full or name.endswith(_METADATA)}
    lock = threading.Lock()
    with (
        tqdm(
            total=sum(manifest.files[name].nbytes for name in wanted),
            unit="B", unit_scale=True, desc="verify", leave=False,
        ) as progress,
        ThreadPoolExecutor(max(num_threads, files.parallel_reads), thread_name_prefix="verify") as threads,
    ):  # fmt: skip

        def advance(nbytes: int) -> None:
            with lock:
                progress.update(nbytes)

        def check(name: str) -> str | None:
            try:
                nbytes = files.size(name) if sizes is None else sizes.get(name)
                return _file_problem(
                    files, name, manifest.files[name], nbytes=nbytes, advance=advance if name in wanted else None
                )
            except (StoreError, OSError) as error:
                nbytes = manifest.files[name].nbytes
                return f"{_where(files, name)}: expected {nbytes} bytes, could not be read: {error}"

        found = {name: problem for name, problem in zip(names, threads.map(check, names), strict=True) if problem}
    found |= _record_problems(files, manifest, skip=set(found))
    return dict(sorted(found.items()))


def _file_problem(
    files: Files, name: str, record: FileRecord, *, nbytes: int | None, advance: Callable[[int], None] | None
) -> str | None:
    """What is wrong with a file that has `nbytes` now; its bytes are read if `advance` is there to be told of them."""
    where = _where(files, name)
    if nbytes is None:
        return f"{where}: expected {record.nbytes} bytes, found no file"
    if nbytes != record.nbytes:
        return f"{where}: expected {record.nbytes} bytes, got {nbytes}"
    if advance is None:
        return None
    hasher, reader = hashlib.sha256(), files.open_range(name, nbytes)
    for offset in range(0, nbytes, _BLOCK_NBYTES):
        block = reader.read(offset, min(_BLOCK_NBYTES, nbytes - offset))
        hasher.update(block.data)
        advance(len(block))
    if hasher.hexdigest() != record.sha256:
        return f"{where}: expected SHA-256 {record.sha256}, got {hasher.hexdigest()}"
    return None


def _record_problems(files: Files, manifest: Manifest, *, skip: set[str]) -> dict[str, str]:
    """Shard records that are no records, or say something else than the manifest."""
    problems: dict[str, str] = {}
    for split in SPLITS:
        sums: list[dict[str, ShardSums]] = []
        for shard in range(manifest.spec.num_shards(manifest.split_sequences(split))):
            name = shard_record_path(shard, split)
            if name in skip:
                continue
            where = _where(files, name)
            try:
                check_small(manifest.files[name].nbytes, where=where)
                record = parse_sealed(ShardRecord, files.read(name), where=where)
            except StoreError as error:
                problems[name] = f"{where}: {error}"
                continue
            sums.append(record.sums)
            if not _belongs(record, manifest, shard, split):
                problems[name] = f"{where}: expected the record of shard {shard} of this cache, got another's"
        if split == "training" and len(sums) == manifest.num_shards and not problems:
            for hook, moments in manifest.moments.items():
                if combine_moments([each[hook] for each in sums]) != moments:
                    where = _where(files, MANIFEST_FILE)
                    problems[MANIFEST_FILE] = f"{where}: expected the moments of {hook} to be those of its shards"
    return problems


def _belongs(record: ShardRecord, manifest: Manifest, shard: int, split: Split) -> bool:
    """Whether a record is that of this shard of this cache, and lists the files that the manifest does."""
    widths = {len(sums.sum) for sums in record.sums.values()} | {len(s.sum_of_squares) for s in record.sums.values()}
    spec = manifest.spec
    per_shard = spec.sequences_per_shard
    num_sequences = min(per_shard, manifest.split_sequences(split) - shard * per_shard)
    named = (record.spec_digest, record.split, record.shard) == (spec.digest, split, shard)
    sized = record.num_sequences == num_sequences and {
        hook: sums.num_rows for hook, sums in record.sums.items()
    } == dict.fromkeys(spec.hooks, num_sequences * spec.rows_per_sequence)
    listed = all(manifest.files.get(file) == entry for file, entry in record.files.items())
    return named and sized and listed and widths == {spec.model.d_model}


def strangers(location: Path | Files, manifest: Manifest) -> list[str]:
    """Files that the manifest does not list: zarr would read some of them as data. None where nothing can be listed."""
    files = _files(location)
    unknown = set(files.sizes() or ()) - manifest.files.keys() - {MANIFEST_FILE}
    return [_where(files, name) for name in sorted(unknown)]


def _files(location: Path | Files) -> Files:
    # By pread: a file that is cut while it is checked is a finding, and not the end of the process.
    return LocalFiles(location, mode="pread") if isinstance(location, Path) else location


def _where(files: Files, name: str) -> str:
    return f"{files.location.rstrip('/')}/{name}"
