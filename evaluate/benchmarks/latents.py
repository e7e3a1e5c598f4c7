"""The `latents` benchmark: where each latent fires, in what text and how strongly, and which tokens it raises.

It is a benchmark because its data have the same life as other results: they depend on one SAE, the settings and the
held-out rows, and are kept, reused, pruned and reported by the same code. What depends on several SAEs, which latent of
one matches which of another, is computed by the report. The few metrics say how often latents fire; the data are the
arrays beside each result (evaluate/latents/data.py), and the report makes the latent browser of them.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, JsonValue

from compute.code_version import CodeVersion
from evaluate.benchmarks.benchmark import Benchmark, EvaluatedSAE, Measurement
from evaluate.benchmarks.context import BenchmarkContext
from store.record import Record, plain

if TYPE_CHECKING:
    from evaluate.latents.collect import Contexts
    from evaluate.latents.one_pass import Text
    from store.read.cache import ActivationCache

DENSE = 0.1
"""A latent that fires on a larger share of rows is called dense."""
_ARRAYS = "latents.safetensors"
_COUNTS = "counts.json"
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(gt=0)]


class LatentsConfig(Record):
    """On how much text the `latents` benchmark looks at latents, and what it keeps of it."""

    num_held_out_sequences: PositiveCount
    """Held-out sequences that are read."""
    num_training_sequences: Count
    """Sequences that SAEs were trained on which are read as well; 0 needs no file of training rows."""
    num_top_contexts: Annotated[int, Field(ge=1, le=100)]
    """Contexts of a latent's largest activations, one of each sequence."""
    num_sampled_firings: Annotated[int, Field(ge=10, le=10_000)]
    """Firings of a latent that are drawn at random and cut into ten quantiles by activation."""
    num_contexts_per_quantile: Annotated[int, Field(ge=0, le=10)]
    """Contexts of each of these quantiles."""
    tokens_before: Annotated[int, Field(ge=0, le=512)]
    """Tokens that are shown before that of a context."""
    tokens_after: Annotated[int, Field(ge=0, le=512)]
    """Tokens that are shown after it."""


def num_held_out_sequences(config: LatentsConfig) -> int:
    """Sequences that are read."""
    return config.num_held_out_sequences


def prepare(config: LatentsConfig, context: BenchmarkContext) -> dict[str, Path]:
    """Reads the rows once for all SAEs that have not been looked at: folder of each variant's arrays."""
    from store.sae.artefact import load_sae

    context.held_out_cache.check_hook(context.hooks[0])
    with ExitStack() as stack:
        folders: dict[str, Path] = {}
        by_weights: dict[str, list[str]] = {}
        for variant, card in context.cards.items():
            by_weights.setdefault(f"{card.hook} {card.weights_sha256}", []).append(variant)
        missing = {}
        for variants in by_weights.values():
            kept = stack.enter_context(context.kept.open("latents", _inputs(config, context, variants[0])))
            folders |= dict.fromkeys(variants, kept.path)
            if not kept.is_complete:
                missing[variants[0]] = kept
        for hook in context.hooks:
            saes = {
                name: load_sae(context.models_folder / name)[0] for name in missing if context.cards[name].hook == hook
            }
            if saes:
                for name, found in _look(saes, hook, config, context).items():
                    _keep(missing[name].path, *found)
                    missing[name].finish()
    return folders


def _inputs(config: LatentsConfig, context: BenchmarkContext, variant: str) -> dict[str, JsonValue]:
    card, manifest = context.cards[variant], context.manifest
    return {
        **BENCHMARK.version.identity("version"),
        "settings": plain(config),
        "weights_sha256": card.weights_sha256,
        "hook": card.hook,
        "cache": manifest.digest,
        "compute_dtype": manifest.spec.compute_dtype,
        "device": context.device.type,
    }


def _look(saes: Any, hook: str, config: LatentsConfig, context: BenchmarkContext) -> dict[str, Any]:  # noqa: ANN401
    """By variant: its data and the number of rows."""
    from evaluate.latents.data import assembled
    from evaluate.latents.logit_effects import logit_effects
    from evaluate.latents.neighbours import nearest_latents
    from evaluate.latents.one_pass import collect

    contexts = _contexts(config)
    caches = _caches(config, context)
    text = _text(config, context, caches)
    found = collect(
        saes,
        text=text,
        hook=hook,
        caches=caches,
        contexts=contexts,
        ignored=context.language_model.ignored_token_ids,
        device=context.device,
        progress=context.progress,
    )
    return {
        name: (
            assembled(
                found.pop(name),
                logit_effects(context.language_model.plain, weights.W_dec),
                nearest_latents(weights.W_dec),
                text=text.tokens,
                tokens_before=contexts.tokens_before,
            ),
            _counted_rows(text, context),
        )
        for name, weights in saes.items()
    }


def _contexts(config: LatentsConfig) -> "Contexts":
    from evaluate.latents.collect import Contexts

    return Contexts(
        num_top=config.num_top_contexts,
        num_sampled=config.num_sampled_firings,
        num_per_quantile=config.num_contexts_per_quantile,
        tokens_before=config.tokens_before,
        tokens_after=config.tokens_after,
    )


def _caches(config: LatentsConfig, context: BenchmarkContext) -> "dict[Any, ActivationCache]":
    """The cache, opened for each split that is read."""
    from store.read.cache import ActivationCache

    caches: dict[Any, ActivationCache] = {"held_out": context.held_out_cache}
    if config.num_training_sequences:
        available = context.manifest.num_sequences
        if config.num_training_sequences > available:
            raise ValueError(
                f"expected at least {config.num_training_sequences} training sequences for evaluate.latents, the "
                f"activation cache has {available}. Lower evaluate.latents.num_training_sequences"
            )
        caches["training"] = ActivationCache(context.place, splits=("training",))
    return caches


def _text(config: LatentsConfig, context: BenchmarkContext, caches: "dict[Any, ActivationCache]") -> "Text":
    from evaluate.latents.one_pass import Text

    parts = [context.held_out[: config.num_held_out_sequences]]
    if config.num_training_sequences:
        parts.append(caches["training"].tokens(range(config.num_training_sequences), split="training"))
    splits = (("held_out", len(parts[0])), ("training", config.num_training_sequences))
    return Text(np.concatenate(parts), splits[: len(parts)])  # type: ignore[arg-type]


def _counted_rows(text: "Text", context: BenchmarkContext) -> int:
    with_rows = text.tokens[:, context.manifest.spec.num_excluded_positions :]
    return int((~np.isin(with_rows, sorted(context.language_model.ignored_token_ids))).sum())


def _keep(folder: Path, data: Any, num_rows: int) -> None:  # noqa: ANN401 - a LatentData, whose module is large
    import safetensors.numpy

    from store.atomic import write_bytes, write_json

    write_bytes(folder / _ARRAYS, safetensors.numpy.save(data.arrays()))
    write_json(folder / _COUNTS, {"num_rows": num_rows})


def measure(
    sae: EvaluatedSAE, config: LatentsConfig, context: BenchmarkContext, shared: dict[str, Path]
) -> Measurement:
    """What the pass over the rows found of one SAE.

    Metrics: mean_density, the share of rows on which a latent is above zero, averaged over latents;
    fraction_dead_latents, those that never are; fraction_dense_latents, those that are on more than a tenth of the
    rows; mean_peak_token_share, over latents that fire: the share of a latent's top contexts whose largest activation
    is on their commonest token (1: it is a latent of one token).
    Details: tokens, the text of every token id in the arrays; num_rows; sequences by split. Arrays: LatentData.
    """
    import safetensors.numpy

    from evaluate.latents.data import LatentData
    from evaluate.latents.spelling import spelled
    from store.atomic import read_json

    folder = shared[sae.variant]
    data = LatentData.of(safetensors.numpy.load((folder / _ARRAYS).read_bytes()))
    num_rows = read_json(folder / _COUNTS)["num_rows"]
    if num_rows == 0:
        raise ValueError("expected text with tokens other than BOS, EOS and padding, got none")
    density = data.num_firing / num_rows
    num_latents, num_dead = len(density), int((density == 0.0).sum())
    shares = peak_token_shares(data.tokens[:, : config.num_top_contexts, config.tokens_before])
    context.progress(1)
    return Measurement(
        metrics={
            "mean_density": float(density.mean()),
            "fraction_dead_latents": num_dead / num_latents,
            "fraction_dense_latents": float((density > DENSE).mean()),
            "mean_peak_token_share": float(shares[density > 0].mean()) if num_dead < num_latents else 0.0,
        },
        basis={
            "rows": num_rows,
            "sequences": config.num_held_out_sequences + config.num_training_sequences,
            "latents": num_latents,
        },
        remarks=(f"All {num_latents:,} latents are dead: there is nothing to look at.",)
        if num_dead == num_latents
        else (),
        details={
            "num_rows": num_rows,
            "sequences": {"held_out": config.num_held_out_sequences, "training": config.num_training_sequences},
            "context_length": context.manifest.spec.context_length,
            "tokens": {str(id_): text for id_, text in spelled(context.model_folder, data.token_ids()).items()},
        },
        arrays=data.arrays(),
    )


def peak_token_shares(peaks: NDArray[np.int32]) -> NDArray[np.float64]:
    """The share of the commonest token among those of each row of `peaks` (F, K); -1 counts as none, 0 for none."""
    ordered = np.sort(peaks, axis=1)
    counts = (ordered[:, :, None] == ordered[:, None, :]).sum(axis=2) * (ordered >= 0)
    there = (ordered >= 0).sum(axis=1)
    return counts.max(axis=1) / np.maximum(there, 1)


BENCHMARK = Benchmark(
    name="latents",
    config=LatentsConfig,
    needs=frozenset({"language_model", "held_out_tokens", "held_out_rows"}),
    version=CodeVersion(
        number=1,
        files=(
            "evaluate/benchmarks/benchmark.py",
            "evaluate/benchmarks/context.py",
            "evaluate/benchmarks/latents.py",
            "evaluate/latents",
            "evaluate/loaded_model.py",
            "language_model/checkpoint.py",
            "language_model/families.py",
            "language_model/load.py",
            "language_model/special_tokens.py",
            "language_model/structure.py",
            "language_model/tokenizer.py",
            "store/sae/geometry.py",
            "store/sae/weights.py",
        ),
        code_sha256="f4e49e17a14e9915918afffdcefd03773360b7ce5f045c19db51f159b2d85b3e",
    ),
    metrics={
        "mean_density": "neither",
        "fraction_dead_latents": "lower",
        "fraction_dense_latents": "neither",
        "mean_peak_token_share": "neither",
    },
    headlines=("mean_peak_token_share",),
    measures="Where each latent fires, in what text and how strongly, and which tokens it raises: the data of the "
    "latent browser. Its metrics say how often latents fire, and how often a latent is one of a single token.",
    measure=measure,
    prepare=prepare,
    num_held_out_sequences=num_held_out_sequences,
)
