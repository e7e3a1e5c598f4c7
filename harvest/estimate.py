"""What a harvest needs of the model, of memory and of the disk, checked before it starts."""

import shutil
from pathlib import Path

from harvest.config import HarvestConfig
from language_model.checkpoint import model_family
from language_model.hooks import check_hooks, check_sites
from language_model.load import max_positions
from language_model.special_tokens import check_bos
from store.identity import ModelIdentity

MAX_SHARD_BYTES = 4 * 2**30
"""Of one hook, uncompressed: a shard is built in memory."""

BEST_COMPRESSION = 1.7
"""More than any codec reached on real activations, so that a harvest is refused only if it cannot fit."""


def check_model_fits(config: HarvestConfig, identity: ModelIdentity, *, folder: Path) -> None:
    """ValueError where the model in `folder` lacks a hook, BOS or positions, or a shard would not fit in memory."""
    check_hooks(config.hooks, num_layers=identity.num_layers, model_name=identity.name)
    check_sites(config.hooks, model_family(folder), model_name=identity.name)
    if config.first_token == "bos":
        check_bos(folder)
    if config.context_length > (positions := max_positions(folder)):
        raise ValueError(
            f"expected a context_length of at most the {positions} positions of {identity.name}, got "
            f"{config.context_length}. Lower harvest.context_length"
        )
    check_shard(config, d_model=identity.d_model)


def check_shard(config: HarvestConfig, *, d_model: int) -> None:
    """ValueError where a shard would not fit in memory."""
    sequences_per_chunk, chunks_per_shard = config.chunking(d_model=d_model)
    shard_sequences = min(sequences_per_chunk * chunks_per_shard, config.num_sequences)
    shard_bytes = shard_sequences * config.rows_per_sequence * d_model * 2
    if shard_bytes > MAX_SHARD_BYTES:
        raise ValueError(
            f"expected shards of at most {MAX_SHARD_BYTES / 1e9:.1f} GB a hook, because they are built in memory, got "
            f"{shard_bytes / 1e9:.1f} GB. Lower harvest.chunks_per_shard or sequences_per_chunk"
        )


def check_free_space(folder: Path, *, num_rows: int, d_model: int) -> None:
    """Raises ValueError where `num_rows` rows, of all hooks, cannot fit on the disk of `folder`, even at best."""
    num_bytes = num_rows * d_model * 2 / BEST_COMPRESSION
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ValueError(
            f"expected at least {num_bytes / 1e9:.1f} GB of free space below {folder} for {num_rows} rows, "
            f"got {free / 1e9:.1f} GB. Free some, or lower harvest.num_rows"
        )
