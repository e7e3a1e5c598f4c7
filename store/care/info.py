"""What a cache holds, in words and numbers, without reading its rows."""

import json
from typing import Any

import numpy as np

from store.cache.left_out import left_out_lines
from store.cache.manifest import load_manifest
from store.cache.moments import Moments
from store.cache.norm_summary import norm_summary
from store.cache.paths import MANIFEST_FILE
from store.cache.spec import CacheSpec
from store.cache.text_account import account_lines
from store.cache.truth import Truth, read_truth
from store.files.open import Place, open_files
from store.record import plain


def summary(location: Place) -> dict[str, Any]:
    """All that is known of a cache without reading its rows, as JSON types: what `store info --json` prints."""
    files = open_files(location, mode="pread")
    manifest = load_manifest(files)
    spec = manifest.spec
    num_tokens = manifest.num_sequences * spec.context_length
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
                "nbytes": manifest.stored_nbytes(hook),
                "raw_nbytes": manifest.raw_nbytes(),
                "ratio": manifest.raw_nbytes() / manifest.stored_nbytes(hook),
                **statistics(manifest.moments[hook]),
                "norms": None if (norms := norm_summary(manifest.moments[hook])) is None else plain(norms),
            }
            for hook in spec.hooks
        },
        "lineage": plain(manifest.lineage),
        "text_account": plain(manifest.text_account),
        "left_out": plain(manifest.left_out),
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


def describe(location: Place) -> str:
    """A page of text about a cache: lineage, rows, sizes, compression and statistics per hook."""
    files = open_files(location, mode="pread")
    manifest, known = load_manifest(files), summary(files)
    spec = manifest.spec
    lines = [
        f"activation cache {files.location}",
        f"  data digest      {manifest.digest}",
        f"  spec digest      {spec.digest}",
        *(_of_features(spec) if spec.is_synthetic else _of_text(spec)),
        f"  sequences        {manifest.num_sequences:,} of {spec.context_length} tokens for training, "
        f"{manifest.num_held_out_sequences:,} held out"
        + ("" if spec.is_synthetic else f" (of {spec.held_out_fraction:.1%} of the documents)"),
        f"  tokens           {known['num_tokens']:,} for training, {known['num_held_out_tokens']:,} held out",
        f"  shards           {manifest.num_shards} of up to {spec.rows_per_shard:,} rows, chunks of "
        f"{spec.rows_per_chunk:,} rows, codec {spec.codec}",
        f"  on disk          {known['nbytes'] / 1e6:,.1f} MB in {known['num_files']} files",
    ]
    if manifest.text_account is not None:
        lines += [f"  read             {line}" for line in account_lines(manifest.text_account)]
    lines += [f"  left out         {line}" for line in left_out_lines(manifest.left_out, manifest.text_account)]
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
            f"    rows: {norm_summary(manifest.moments[hook]) or 'norms were not recorded'}",
        ]
        if spec.is_synthetic:
            lines.append(f"    {hook}: {_features(read_truth(files, manifest, hook))}")
    return "\n".join(lines)


def _of_text(spec: CacheSpec) -> list[str]:
    model = spec.model
    return [
        f"  language model   {model.name}, revision {model.revision or 'local'}, weights {model.weights_sha256[:12]}, "
        f"d_model {model.d_model}, {model.num_layers} layers, computed in {spec.compute_dtype} with "
        f"{spec.attention} attention",
        f"  text             {_shortened(json.dumps(spec.text, sort_keys=True))}",
        f"  packing          {_shortened(spec.packing)}",
        f"  sequences begin  with {'BOS' if spec.first_token == 'bos' else 'text, without BOS'}",
        f"  excluded         {', '.join(spec.excluded_positions) or 'no positions'}",
    ]


def _of_features(spec: CacheSpec) -> list[str]:
    return [
        f"  language model   none: known features, digest {spec.model.weights_sha256[:12]}, d_model "
        f"{spec.model.d_model}",
        f"  features         {_shortened(json.dumps(spec.text, sort_keys=True))}",
        f"  packing          {_shortened(spec.packing)}",
    ]


def _features(truth: Truth) -> str:
    """What the known features of a hook are, in a sentence."""
    text = f"{truth.num_features} features, {truth.mean_active:.3f} of them on in a sample (the true L0), each in "
    text += f"{truth.frequencies.min():.2%} to {truth.frequencies.max():.2%} of the samples"
    in_trees = int(((truth.parents >= 0) | np.isin(np.arange(truth.num_features), truth.parents)).sum())
    return text + (f"; {in_trees} of them in trees of depth {truth.depths.max()}" if in_trees else "")


def _shortened(text: str, length: int = 300) -> str:
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 2 :]}"
