"""After how many trainings storing beats running the language model again: measured here, computed for elsewhere.

    python benchmarks/break_even.py [--json]

Storing costs one harvest and a reading for each training (or epoch); not storing costs a forward pass for each. With

    harvest = max(forward, encoding, writing)    read = max(decoding, reading)
    break-even = harvest / (forward - read), rounded up to a whole number above it

The measured part is the probe of `pipeline.py harvest --estimate` on the embedded model, on this machine. The computed
part puts stated figures of other machines and of google/gemma-2-2b into the same formula; nothing of it was run.
Training itself is left out of both sides: it costs the same.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from bench import CONTEXT, HOOK, embedded_windows, finish, machine, parser, spec_for, table

from harvest.activations import load_cut_model
from harvest.probe import passes_to_break_even, probe
from language_model.load import identify, resolve

COMPRESSION = 1.47
"""Of bfloat16 residual streams by bf16_planes_v1, see docs/LOG.md."""
GEMMA: dict[str, float] = {
    # 26 layers of 2304 channels: parameters of one layer, without embeddings: attention 2304 * (2048 + 2 * 1024) + 2048
    # * 2304, MLP 3 * 2304 * 9216.
    "parameters_per_layer": 2304 * (2048 + 2 * 1024) + 2048 * 2304 + 3 * 2304 * 9216,
    "d_model": 2304,
}
MACHINES: dict[str, dict[str, float]] = {
    # Peak of dense bfloat16 products by the makers' data sheets; the share of it that a forward pass reaches and the
    # speeds of disk, host and codec are assumptions, to be replaced by your own.
    "H200, local NVMe": {
        "peak_flops": 989e12, "share": 0.43, "write": 5e9, "read": 6e9, "encode": 16 * 0.5e9, "decode": 16 * 1.6e9
    },
    "H200, network disk": {
        "peak_flops": 989e12, "share": 0.43, "write": 1e9, "read": 1e9, "encode": 16 * 0.5e9, "decode": 16 * 1.6e9
    },
    "RTX 4090, local NVMe": {
        "peak_flops": 165e12, "share": 0.43, "write": 3e9, "read": 5e9, "encode": 8 * 0.5e9, "decode": 8 * 1.6e9
    },
    "RTX 4090, SATA disk": {
        "peak_flops": 165e12, "share": 0.43, "write": 0.5e9, "read": 0.5e9, "encode": 8 * 0.5e9, "decode": 8 * 1.6e9
    },
}  # fmt: skip


def main() -> None:
    """Parses the command line, measures, computes, prints."""
    arguments = parser(__doc__)
    arguments.add_argument("--tokens", type=float, default=500e6, help="of the computed harvests (%(default)g)")
    options = arguments.parse_args()
    measured = measure()
    computed = {
        f"{name}, layer {layer}": compute(figures, num_layers=layer + 1, num_tokens=options.tokens)
        for name, figures in MACHINES.items()
        for layer in (5, 12, 19)
    }
    print("measured here: embedded model, layer 2, one million tokens; seconds from a probe")
    show({"here": measured})
    print(
        f"\ncomputed, not run: google/gemma-2-2b, {options.tokens:g} tokens, one hook; inputs in MACHINES of this file"
    )
    show(computed)
    finish(
        {"measured": measured, "computed": computed, "inputs": MACHINES, "machine": machine("torch", "transformers")},
        options,
    )


def show(rows: dict[str, dict[str, Any]]) -> None:
    """A table of both kinds."""
    table(
        ("", "tokens/s", "forward s", "encode s", "write s", "harvest s", "read s", "break-even"),
        [
            (
                name, float(row["tokens_per_s"]), *(float(row[key]) for key in ("forward", "encode", "write")),
                float(row["harvest"]), float(row["read"]),
                "never" if row["break_even"] is None else f"{row['break_even']} trainings",
            )
            for name, row in rows.items()
        ],
    )  # fmt: skip


def measure() -> dict[str, Any]:
    """Seconds for a million tokens on this machine, by the probe of the estimate."""
    folder = resolve("embedded", None)
    identity = identify(folder, "embedded", None)
    spec = spec_for(identity.d_model).model_copy(update={"model": identity})
    model = load_cut_model(folder, (HOOK,), dtype=torch.float32, device="cpu")
    with tempfile.TemporaryDirectory(dir=Path()) as place:
        found = probe(
            model, spec, embedded_windows(64), folder=Path(place), device="cpu", num_tokens=10**6, thorough=True
        )
    num_rows = 10**6 * (CONTEXT - 1) / CONTEXT
    raw = 2.0 * num_rows * identity.d_model
    return _row(
        tokens_per_s=found.tokens_per_second,
        num_tokens=1e6,
        encode=raw / (found.encode_bytes_per_second * found.num_threads),
        write=raw * found.stored_share / found.write_bytes_per_second,
        decode=raw / (found.decode_bytes_per_second * found.num_threads),
        read=raw * found.stored_share / found.read_bytes_per_second,
        shares_cores=True,
    )


def compute(figures: dict[str, float], *, num_layers: int, num_tokens: float) -> dict[str, Any]:
    """The same of a machine that is not here: two FLOPs for each parameter and token, attention's products left out."""
    flops_per_token = 2.0 * GEMMA["parameters_per_layer"] * num_layers
    raw = 2.0 * num_tokens * GEMMA["d_model"]
    return _row(
        tokens_per_s=figures["peak_flops"] * figures["share"] / flops_per_token,
        num_tokens=num_tokens,
        encode=raw / figures["encode"],
        write=raw / COMPRESSION / figures["write"],
        decode=raw / figures["decode"],
        read=raw / COMPRESSION / figures["read"],
        shares_cores=False,
    )


def _row(
    *, tokens_per_s: float, num_tokens: float, encode: float, write: float, decode: float, read: float,
    shares_cores: bool,
) -> dict[str, Any]:  # fmt: skip
    forward = num_tokens / tokens_per_s
    harvest = max(forward + encode if shares_cores else max(forward, encode), write)
    return {
        "tokens_per_s": tokens_per_s, "forward": forward, "encode": encode, "write": write, "harvest": harvest,
        "read": max(decode, read),
        "break_even": passes_to_break_even(store=harvest, read=max(decode, read), forward=forward),
    }  # fmt: skip


if __name__ == "__main__":
    main()
