"""What a result depends on: SAE cards, held-out tokens, settings. Evaluation and report read the same."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.benchmarks.benchmark import Benchmark
from store.cache.manifest import Manifest
from store.cache.paths import row_shard_path, truth_path
from store.errors import MismatchedCache, StoreError
from store.files.protocol import Files
from store.read.tokens import read_tokens
from store.record import Record, digest, plain
from store.replace import NOT_OURS
from store.sae.artefact import SAECard, load_card


def all_cards(models_folder: Path, manifest: Manifest) -> dict[str, SAECard]:
    """The card of every variant, by name; all were trained on the cache described by `manifest`."""
    found = models_folder.glob("[!.]*") if models_folder.is_dir() else ()
    folders = sorted(path for path in found if path.is_dir() and path.name not in NOT_OURS)
    if not folders:
        raise StoreError(f"expected a folder per variant in {models_folder}, found none. Train first: dvc repro train")
    return {folder.name: fitting_card(folder, manifest) for folder in folders}


def diverged_at(card: SAECard) -> int | None:
    """The step at which the variant's training diverged; None for one that trained to its end."""
    step = card.final.get("diverged_at_step")
    return None if step is None else int(step)


def fitting_card(folder: Path, manifest: Manifest) -> SAECard:
    """The card of one SAE, checked to be the one its folder names and to come from the cache of `manifest`."""
    card = load_card(folder)
    if card.name != folder.name:
        raise StoreError(f"expected the SAE of {folder.name!r} in {folder}, got that of {card.name!r}. Train again")
    if card.cache_digest != manifest.digest:
        raise MismatchedCache(
            f"expected {folder} to be trained on the present activation cache, {manifest.digest[:12]}, got one trained "
            f"on {card.cache_digest[:12]}. Run dvc repro, or dvc pull models and data/activations of one commit"
        )
    return card


def held_out_tokens(files: Files, manifest: Manifest, *, needed: int) -> NDArray[np.uint32]:
    """The first `needed` held-out sequences, (sequences, context), from the files of a cache."""
    if needed == 0:
        return np.empty((0, manifest.spec.context_length), dtype=np.uint32)
    tokens = read_tokens(files, manifest, split="held_out")
    if len(tokens) < needed:
        raise ValueError(
            f"expected at least {needed} held-out sequences for evaluate, the activation cache has {len(tokens)}. "
            "Lower the number of sequences in evaluate, or raise num_held_out_sequences in harvest"
        )
    return tokens[:needed]


def result_inputs(
    benchmark: Benchmark,
    settings: Record,
    *,
    card: SAECard,
    manifest: Manifest,
    held_out: NDArray[np.uint32],
) -> dict[str, Any]:
    """Everything that the metrics of one variant depend on, as JSON; its digest is the result's key."""
    inputs: dict[str, Any] = {
        "benchmark": benchmark.name,
        **benchmark.version.identity("version"),
        "settings": plain(settings),
        "weights_sha256": card.weights_sha256,
        **benchmark.depends_on(settings),
    }
    if "language_model" in benchmark.needs:
        inputs |= {
            "hook": card.hook,
            "language_model": manifest.spec.model.identifying(),
            "compute_dtype": manifest.spec.compute_dtype,
        }
    if "held_out_tokens" in benchmark.needs:
        inputs |= {
            "held_out_shape": list(held_out.shape),
            "held_out_sha256": hashlib.sha256(np.ascontiguousarray(held_out, dtype="<u4").tobytes()).hexdigest(),
        }
    if "held_out_rows" in benchmark.needs:
        inputs["held_out_rows_sha256"] = _rows_digest(manifest, card.hook)
        inputs["norm_limit"] = None if card.norm_limit is None else plain(card.norm_limit)
    if "truth" in benchmark.needs:
        truth = manifest.files.get(truth_path(card.hook))
        inputs["truth_sha256"] = None if truth is None else truth.sha256
    return inputs


def _rows_digest(manifest: Manifest, hook: str) -> str:
    """Digest of the held-out rows of a hook, by those of their files: the manifest alone is read."""
    num_shards = manifest.spec.num_shards(manifest.split_sequences("held_out"))
    names = [row_shard_path(hook, shard, "held_out") for shard in range(num_shards)]
    return digest({"files": [manifest.files[name].sha256 for name in names if name in manifest.files]})
