"""A small real cache: 41 training and 14 held-out sequences of 8 rows, 48 channels, two hooks, shards of 12."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from store.cache.moments import ShardSums
from store.cache.spec import CacheSpec
from store.cache.split import SPLITS, Split
from store.identity import ModelIdentity
from store.lease import Lease
from store.write.growing import Taken
from store.write.writer import CacheWriter

HOOKS = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
NUM_SEQUENCES, NUM_HELD_OUT, CONTEXT, D_MODEL = 41, 14, 9, 48
HELD_OUT_FROM = 500


def make_spec(**changes: Any) -> CacheSpec:  # noqa: ANN401 - fields of the spec
    model = ModelIdentity(
        name="toy",
        revision=None,
        weights_sha256="0" * 64,
        tokenizer_sha256="0" * 64,
        d_model=D_MODEL,
        num_layers=3,
        vocab_size=100,
        bos_token_id=2,
    )
    fields: dict[str, Any] = {
        "model": model,
        "hooks": HOOKS,
        "text": {"kind": "toy"},
        "context_length": CONTEXT,
        "excluded_positions": ("bos",),
        "packing": "random tokens",
        "held_out_fraction": 0.1,
        "compute_dtype": "float32",
        "forward_batch_sequences": 4,
        "sequences_per_chunk": 4,
        "chunks_per_shard": 3,
        "codec": "bf16_planes_v1",
        "harvest_version": 1,
    }
    return CacheSpec(**(fields | changes))


def tokens_of(num_sequences: int) -> NDArray[np.uint32]:
    tokens = np.random.default_rng(1).integers(3, 100, (10_000, CONTEXT), dtype=np.uint32)[:num_sequences]
    tokens[:, 0] = 2
    return tokens


def rows_of(hook: str, num_sequences: int) -> NDArray[np.uint16]:
    """The bit patterns of all rows of a hook in sequence order; a longer cache only adds rows."""
    rng = np.random.default_rng(HOOKS.index(hook))
    values = rng.standard_normal((1000 * (CONTEXT - 1), D_MODEL)) * np.exp(rng.standard_normal(D_MODEL))
    values = values[: num_sequences * (CONTEXT - 1)].astype(np.float32)
    return torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()


def fill(writer: CacheWriter, shard: int, split: Split = "training") -> None:
    """Writes a shard; held-out sequence i holds the rows of training sequence i + HELD_OUT_FROM."""
    first = shard * writer.spec.sequences_per_shard + (HELD_OUT_FROM if split == "held_out" else 0)
    last = first + writer.shard_sequences(shard, split)
    per_sequence = writer.spec.rows_per_sequence
    rows = {
        hook: rows_of(hook, last)[first * per_sequence :]
        for hook in writer.missing_hooks(shard, split) or writer.spec.hooks
    }
    sums = {}
    for hook, bits in rows.items():
        values = torch.from_numpy(bits).view(torch.bfloat16).double()
        sums[hook] = ShardSums(
            num_rows=len(bits), sum=values.sum(0).tolist(), sum_of_squares=values.square().sum(0).tolist()
        )
    writer.submit_shard(shard, split=split, tokens=tokens_of(last)[first:], rows=rows, sums=sums).result()


def make_writer(
    folder: Path,
    *,
    num_sequences: int = NUM_SEQUENCES,
    lease: Lease | None = None,
    taken: Taken | None = None,
    **changes: Any,  # noqa: ANN401 - fields of the spec
) -> CacheWriter:
    return CacheWriter(
        folder,
        make_spec(**changes),
        num_sequences=num_sequences,
        num_held_out_sequences=NUM_HELD_OUT,
        lease=lease,
        taken=taken,
    )


def finish(writer: CacheWriter) -> None:
    """Writes what is missing, and the manifest."""
    for split in SPLITS:
        for shard in writer.missing_shards(split):
            fill(writer, shard, split)
    writer.finish()


def write_cache(folder: Path, *, num_sequences: int = NUM_SEQUENCES, **changes: Any) -> Path:  # noqa: ANN401
    with make_writer(folder, num_sequences=num_sequences, **changes) as writer:
        finish(writer)
    return folder
