"""What the benchmarks share: real rows to measure on, fair timing in turns, and the figures' frame."""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harvest.activations import harvest_rows, load_cut_model
from harvest.moments import shard_sums
from harvest.text import open_text
from harvest.text_config import StandardLibraryText
from harvest.tokens import pack
from language_model.load import identify, resolve
from language_model.tokenizer import load_tokenizer
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS
from store.identity import ModelIdentity
from store.write.writer import CacheWriter

HOOK = "blocks.2.hook_resid_post"
CONTEXT = 128


def parser(documentation: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark of the store has."""
    made = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--input", type=Path, metavar="FILE.npy", help="your own uint16 (rows, d_model) bit patterns")
    made.add_argument("--rows", type=int, default=130_048, help="rows to use, at most (%(default)s)")
    made.add_argument("--rounds", type=int, default=7, help="turns; the best of each counts (%(default)s)")
    made.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return made


def rows_to_measure(options: argparse.Namespace) -> NDArray[np.uint16]:
    """The rows of --input, or of the embedded language model: (rows, d_model) bit patterns of bfloat16."""
    if options.input is None:
        return embedded_rows(options.rows)[1]
    rows = np.load(options.input, allow_pickle=False)
    if rows.ndim != 2 or rows.dtype != np.uint16 or not rows.size:
        raise SystemExit(f"expected uint16 (rows, d_model) in {options.input}, got {rows.dtype} of shape {rows.shape}")
    return np.ascontiguousarray(rows[: options.rows])


def embedded_rows(num_rows: int) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Token windows (sequences, 128) and their rows after layer 2 of the embedded model, BOS left out."""
    folder = resolve("embedded", None)
    identity = identify(folder, "embedded", None)
    windows = pack(
        open_text(StandardLibraryText(kind="standard-library")),
        load_tokenizer(folder),
        bos_token_id=identity.bos_token_id,
        vocab_size=identity.vocab_size,
        context_length=CONTEXT,
        num_sequences=-(-num_rows // (CONTEXT - 1)),
        num_held_out_sequences=1,
        held_out_fraction=0.05,
    )
    import torch

    model = load_cut_model(folder, (HOOK,), dtype=torch.float32, device="cpu")
    rows = harvest_rows(
        model, windows.training, d_model=identity.d_model, rows_per_sequence=CONTEXT - 1, batch_sequences=32,
        device="cpu", on_progress=lambda _: None,
    )  # fmt: skip
    return windows.training, rows[HOOK]


def embedded_windows(count: int) -> NDArray[np.uint32]:
    """Windows (count, 128) of the standard library in the embedded model's tokens."""
    folder = resolve("embedded", None)
    identity = identify(folder, "embedded", None)
    return pack(
        open_text(StandardLibraryText(kind="standard-library")),
        load_tokenizer(folder),
        bos_token_id=identity.bos_token_id,
        vocab_size=identity.vocab_size,
        context_length=CONTEXT,
        num_sequences=count,
        num_held_out_sequences=1,
        held_out_fraction=0.05,
    ).training


def spec_for(d_model: int, *, codec: str = "bf16_planes_v1", sequences_per_chunk: int = 16) -> CacheSpec:
    """The spec of a cache of measured rows: the embedded profile's sizes, 32 chunks to a shard."""
    model = ModelIdentity(
        name="benchmark", revision=None, weights_sha256="0" * 64, tokenizer_sha256="0" * 64, d_model=d_model,
        num_layers=4, vocab_size=4096, bos_token_id=1,
    )  # fmt: skip
    return CacheSpec.model_validate(
        {
            "model": model, "hooks": (HOOK,), "text": {"kind": "benchmark"}, "context_length": CONTEXT,
            "excluded_positions": ("bos",), "packing": "benchmark", "held_out_fraction": 0.05,
            "compute_dtype": "float32", "forward_batch_sequences": 32, "sequences_per_chunk": sequences_per_chunk,
            "chunks_per_shard": 32, "codec": codec, "harvest_version": 0,
        }
    )  # fmt: skip


def write_cache(
    folder: Path,
    rows: NDArray[np.uint16],
    *,
    tokens: NDArray[np.uint32] | None = None,
    repeats: int = 1,
    codec: str = "bf16_planes_v1",
) -> None:
    """A cache of the rows, `repeats` times over, with one held-out sequence; tokens are zeros if None."""
    spec = spec_for(rows.shape[1], codec=codec)
    per_sequence = spec.rows_per_sequence
    num_sequences = len(rows) // per_sequence
    with CacheWriter(folder, spec, num_sequences=repeats * num_sequences, num_held_out_sequences=1) as writer:
        for split in SPLITS:
            for shard in writer.missing_shards(split):
                first, count = shard * spec.sequences_per_shard, writer.shard_sequences(shard, split)
                sequences = np.arange(first, first + count) % num_sequences
                here = rows[: num_sequences * per_sequence].reshape(num_sequences, per_sequence, -1)[sequences]
                here = here.reshape(count * per_sequence, -1)
                sums = {HOOK: shard_sums(here, hook=HOOK, first_sequence=first, rows_per_sequence=per_sequence)}
                windows = np.zeros((count, CONTEXT), dtype=np.uint32) if tokens is None else tokens[sequences]
                writer.submit_shard(shard, split=split, tokens=windows, rows={HOOK: here}, sums=sums)
        writer.finish()


def best_of(rounds: int, measured: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each, measured in turns; the best of the rounds, because other work only ever slows one down."""
    best = dict.fromkeys(measured, float("inf"))
    for _ in range(rounds):
        for name, function in measured.items():
            begin = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def machine(*packages: str) -> dict[str, str]:
    """What the figures belong to: hardware, versions, commit."""
    cpu = "unknown CPU"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return {
        "hardware": f"{cpu}, {len(os.sched_getaffinity(0))} cores",
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "commit": commit.stdout.strip() or "none",
    }


def table(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Prints columns, the first one left-aligned; floats with three significant digits or as whole numbers."""

    def text(value: object) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 1 else f"{value:.3f}"
        return str(value)

    cells = [header, *(tuple(text(value) for value in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for first, *others in cells:
        right = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join((first.ljust(widths[0]), *right)).rstrip())


def finish(figures: dict[str, Any], options: argparse.Namespace) -> None:
    """Prints what the figures belong to and, with --json, all of them as the last line."""
    print("  ".join(f"{name} {value}" for name, value in figures["machine"].items()))
    if options.json:
        print(json.dumps(figures, sort_keys=True))
