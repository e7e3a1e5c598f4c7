"""What a cache holds, in words, and whether its files are still those that were written."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from store.atomic import file_sha256
from store.manifest import MANIFEST_FILE, FileRecord, Manifest, load_manifest


def describe(folder: Path) -> str:
    """A page of text about the cache in `folder`: lineage, rows, sizes and compression per hook."""
    manifest = load_manifest(folder)
    spec, model = manifest.spec, manifest.spec.model
    lines = [
        f"activation cache {folder}",
        f"  data digest      {manifest.digest}",
        f"  spec digest      {spec.digest}",
        f"  language model   {model.name}, revision {model.revision or 'local'}, weights {model.weights_sha256[:12]}, "
        f"d_model {model.d_model}, {model.num_layers} layers",
        f"  text             {json.dumps(spec.text, sort_keys=True)}",
        f"  packing          {spec.packing}",
        f"  excluded         {', '.join(spec.excluded_positions)}",
        f"  sequences        {manifest.num_sequences:,} of {spec.context_length} tokens for training, "
        f"{manifest.num_held_out_sequences:,} held out (of {spec.held_out_fraction:.1%} of the documents)",
        f"  shards           {manifest.num_shards} of up to {spec.rows_per_shard:,} rows, chunks of "
        f"{spec.rows_per_chunk:,} rows, codec {spec.codec}",
    ]
    for hook in spec.hooks:
        stored = hook_nbytes(manifest, hook)
        raw = 2 * (manifest.num_rows + manifest.split_rows("held_out")) * model.d_model
        lines.append(
            f"  {hook}: {manifest.num_rows:,} rows, {stored / 1e6:,.1f} MB, {raw / stored:.3f} times smaller than raw "
            f"bfloat16, E||x||^2 = {manifest.moments[hook].mean_squared_norm:,.1f}"
        )
    return "\n".join(lines)


def hook_nbytes(manifest: Manifest, hook: str) -> int:
    """Bytes that a hook's shards take on disk."""
    return sum(
        file.nbytes for name, file in manifest.files.items() if name.startswith((f"{hook}/c/", f"held_out/{hook}/c/"))
    )


def verify(folder: Path, *, full: bool, num_threads: int) -> list[str]:
    """Checks every file of the manifest in `folder`; returns one line per file that is not as it was written.

    Args:
        folder: of the cache.
        full: also read every byte and compare SHA-256 digests.
        num_threads: files read at once.
    """
    manifest = load_manifest(folder)

    def check(item: tuple[str, FileRecord]) -> str | None:
        name, record = item
        path = folder / name
        if not path.is_file():
            return f"{path}: expected {record.nbytes} bytes, found no file"
        if path.stat().st_size != record.nbytes:
            return f"{path}: expected {record.nbytes} bytes, got {path.stat().st_size}"
        if full and (got := file_sha256(path)) != record.sha256:
            return f"{path}: expected SHA-256 {record.sha256}, got {got}"
        return None

    with ThreadPoolExecutor(num_threads) as threads:
        checked = tqdm(
            threads.map(check, manifest.files.items()),
            total=len(manifest.files),
            unit="file",
            desc="verify",
            leave=False,
        )
        problems = [problem for problem in checked if problem is not None]
    problems += [f"{path}: expected no such file" for path in _strangers(folder, manifest)]
    return problems


def _strangers(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Files that the manifest does not list: zarr would read some of them as data."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in manifest.files and name != MANIFEST_FILE:
            yield path
