"""Size and speed of the codecs on real activations, one core: against general compressors, pcodec and the entropy.

    python benchmarks/codec.py [--input FILE.npy] [--json]

Chunks of 2032 rows, as the embedded profile stores them. The bound is the order-0 entropy of both planes after every
channel's exponent is shifted by its median: no coder of single symbols of that split can be smaller. Without --input
the rows are the embedded model's, and SAELens's own cached-activations runner stores the same tokens for comparison.
"""

import argparse
import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numcodecs
import numpy as np
import torch
from bench import CONTEXT, HOOK, best_of, embedded_rows, finish, machine, parser, rows_to_measure, table, write_cache
from numpy.typing import NDArray
from sae_lens import cache_activations_runner
from sae_lens.config import CacheActivationsRunnerConfig

from language_model.load import load_bridge, resolve
from store.codec.names import CodecName
from store.codec.registry import decode_chunk, encode_chunk
from store.read.cache import ActivationCache

CHUNK_ROWS = 2032
MAX_CHUNKS = 32  # measured; a few hundred MB at most
PEERS: dict[str, Any] = {
    "Blosc lz4 5 + bitshuffle": numcodecs.Blosc(cname="lz4", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE),
    "Blosc zstd 5 + shuffle": numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE),
    "zstd 1": numcodecs.Zstd(level=1),
    "pcodec 8": numcodecs.pcodec.PCodec(level=8),
}
OURS: CodecName = "bf16_planes_v1"


def main() -> None:
    """Parses the command line, measures, prints."""
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    numcodecs.blosc.set_nthreads(1)  # it takes all cores otherwise
    tokens = None
    if options.input is None:
        tokens, rows = embedded_rows(options.rows)
    else:
        rows = rows_to_measure(options)
    figures = measure(rows, rounds=options.rounds)
    if tokens is not None:
        figures["bytes_per_token"] = bytes_per_token(tokens, rows)
    figures["machine"] = machine("numcodecs", "pcodec", "zstandard", "sae-lens")
    show(figures, options)


def measure(rows: NDArray[np.uint16], *, rounds: int) -> dict[str, Any]:
    """Ratio against raw bfloat16, and MB/s of raw bfloat16 on one core, per codec."""
    chunk_rows, d_model = min(CHUNK_ROWS, len(rows)), rows.shape[1]
    chunks = [rows[at : at + chunk_rows] for at in range(0, len(rows) - chunk_rows + 1, chunk_rows)]
    timed = chunks[:MAX_CHUNKS]
    out, slots = np.empty((chunk_rows, d_model), dtype=np.uint16), np.arange(chunk_rows)

    def decode_ours(encoded: NDArray[np.uint8]) -> None:
        decode_chunk(OURS, encoded, (chunk_rows, d_model), out, slots)

    ours = [np.frombuffer(encode_chunk(OURS, chunk), np.uint8) for chunk in timed]
    for chunk, encoded in zip(timed, ours, strict=True):
        decode_ours(encoded)
        assert np.array_equal(out, chunk)
    sizes: dict[str, int] = {OURS: sum(len(encode_chunk(OURS, chunk)) for chunk in chunks)}
    encoders: dict[str, Callable[[], object]] = {OURS: partial(all_of, partial(encode_chunk, OURS), timed)}
    decoders: dict[str, Callable[[], object]] = {OURS: partial(all_of, decode_ours, ours)}
    for name, codec in PEERS.items():
        sizes[name] = sum(len(bytes(codec.encode(chunk))) for chunk in chunks)
        encoders[name] = partial(all_of, codec.encode, timed)
        decoders[name] = partial(all_of, partial(codec.decode, out=out), [codec.encode(chunk) for chunk in timed])
    raw, timed_raw = sum(chunk.nbytes for chunk in chunks), sum(chunk.nbytes for chunk in timed)
    encode, decode = best_of(rounds, encoders), best_of(rounds, decoders)
    result = {
        name: {
            "ratio": raw / sizes[name],
            "encode_mb_per_s": timed_raw / encode[name] / 1e6,
            "decode_mb_per_s": timed_raw / decode[name] / 1e6,
        }
        for name in (OURS, *PEERS)
    }
    bound = 16.0 / entropy_bits(rows, chunk_rows)
    return {
        "rows": len(rows),
        "d_model": rows.shape[1],
        "codecs": result,
        "entropy_bound_ratio": bound,
        "share_of_bound": result[OURS]["ratio"] / bound,
        "encode_against_pcodec": result[OURS]["encode_mb_per_s"] / result["pcodec 8"]["encode_mb_per_s"],
        "decode_against_pcodec": result[OURS]["decode_mb_per_s"] / result["pcodec 8"]["decode_mb_per_s"],
    }


def all_of(function: Callable[[Any], object], items: list[Any]) -> None:
    """Calls the function on each item."""
    for item in items:
        function(item)


def entropy_bits(rows: NDArray[np.uint16], chunk_rows: int) -> float:
    """Bits per value: order-0 entropies of the shifted exponents and of signs with mantissas, over all rows."""
    exponents, rest = np.zeros(256), np.zeros(256)
    for at in range(0, len(rows), chunk_rows):
        chunk = rows[at : at + chunk_rows]
        exponent = (chunk >> 7) & 0xFF
        shifted = (exponent - np.median(exponent, axis=0).astype(np.int64)) & 0xFF
        exponents += np.bincount(shifted.ravel(), minlength=256)
        rest += np.bincount((((chunk >> 8) & 0x80) | (chunk & 0x7F)).ravel(), minlength=256)
    return _entropy(exponents) + _entropy(rest)


def _entropy(counts: NDArray[np.float64]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def bytes_per_token(tokens: NDArray[np.uint32], rows: NDArray[np.uint16]) -> dict[str, float]:
    """All bytes on disk per token of the same windows: our cache, and what SAELens's runner writes."""
    num_sequences = len(tokens) // 32 * 32  # what SAELens's runner needs: whole batches
    tokens, rows = tokens[:num_sequences], rows[: num_sequences * (CONTEXT - 1)]
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        write_cache(ours, rows, tokens=tokens)
        their_tokens = run_saelens(theirs, tokens, d_model=rows.shape[1])
        sizes = [sum(path.stat().st_size for path in made.rglob("*") if path.is_file()) for made in (ours, theirs)]
        cache = ActivationCache(ours)  # its one held-out sequence, which is one of the others again, does not count
        sizes[0] -= sum(file.nbytes for name, file in cache.manifest.files.items() if name.startswith("held_out/"))
    ours_per_token, theirs_per_token = sizes[0] / tokens.size, sizes[1] / their_tokens
    return {"ours": ours_per_token, "saelens": theirs_per_token, "ratio": ours_per_token / theirs_per_token}


def run_saelens(folder: Path, tokens: NDArray[np.uint32], *, d_model: int) -> int:
    """SAELens's CacheActivationsRunner over the same windows, its own settings, on the same model.

    Returns the number of tokens it stored: it fills its last buffer by starting again.
    """
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=UserWarning, module="sae_lens")
    bridge = load_bridge(resolve("embedded", None), dtype=torch.float32, device="cpu")
    texts = folder.parent / "tokens"
    datasets.Dataset.from_dict({"tokens": tokens.astype(np.int64).tolist()}).save_to_disk(str(texts))
    config = CacheActivationsRunnerConfig(
        dataset_path=str(texts), model_name="embedded", model_batch_size=32, hook_name=HOOK, d_in=d_model,
        training_tokens=tokens.size, context_size=CONTEXT, new_cached_activations_path=str(folder), shuffle=False,
        device="cpu", streaming=False, prepend_bos=True, buffer_size_gb=0.05,
    )  # fmt: skip
    loader = cache_activations_runner.load_model
    # The runner loads models by hub name only; the model is the same, put in its place.
    cache_activations_runner.load_model = lambda **_: bridge
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            cache_activations_runner.CacheActivationsRunner(
                config, override_dataset=datasets.load_from_disk(str(texts))
            ).run()
    finally:
        cache_activations_runner.load_model = loader
    return len(datasets.load_from_disk(str(folder))) * CONTEXT


def show(figures: dict[str, Any], options: argparse.Namespace) -> None:
    """The figures, readable."""
    print(f"{figures['rows']:,} rows of {figures['d_model']} channels, one core, MB/s of raw bfloat16")
    table(
        ("codec", "ratio", "encode MB/s", "decode MB/s"),
        [
            (name, measured["ratio"], measured["encode_mb_per_s"], measured["decode_mb_per_s"])
            for name, measured in figures["codecs"].items()
        ]
        + [("order-0 entropy (bound)", figures["entropy_bound_ratio"], "", "")],
    )
    print(
        f"{figures['share_of_bound']:.1%} of the bound; against pcodec 8: encodes "
        f"{figures['encode_against_pcodec']:.1f} times as fast, decodes {figures['decode_against_pcodec']:.2f} times"
    )
    if sizes := figures.get("bytes_per_token"):
        print(
            f"bytes per token on disk: {sizes['ours']:.1f}, SAELens's runner {sizes['saelens']:.1f}: "
            f"{sizes['ratio']:.3f} of it"
        )
    finish(figures, options)


if __name__ == "__main__":
    main()
