"""The `recovery` benchmark: an SAE beside the truth, where activations were made from known features.

Directions: the mean correlation coefficient (MCC) and uniqueness of sae_lens.synthetic; the share of features that have
a latent within `found_cosine`. Firing, on the held-out rows: how well the latent nearest to each feature tells when the
feature is on, averaged over features (sae_lens.synthetic's ClassificationMetrics averages over latents, and so says
nothing about features that no latent is nearest to). Hierarchies: parents whose latent stays silent where a child is
on, and how far latents of children point to the parent.

A decoder that was never trained has little absorption and little leak: both are read beside MCC, never alone.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, JsonValue

from compute.code_version import CodeVersion
from evaluate.benchmarks.benchmark import Benchmark, EvaluatedSAE, Measurement, NotRun
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.jackknife import as_arrays, standard_errors, without_one
from evaluate.recovery.directions import chance_correlation, correlation, match, mean_leak, uniqueness
from evaluate.recovery.firing import Array, Counts, absorbed, children_of, count, detection, mean_of, thirds
from store.record import Record
from store.sae.weights import encode

if TYPE_CHECKING:
    from store.cache.truth import Truth

BATCH_ROWS = 8192
CHANCE_FACTOR = 3.0
"""An MCC within so many deviations of chance is remarked upon."""


class RecoveryConfig(Record):
    """What counts as found, and as absorbed."""

    found_cosine: Annotated[float, Field(gt=0, le=1)]
    """A feature is found where some latent's direction has at least this cosine with its own."""
    lost_recall: Annotated[float, Field(gt=0, lt=1)]
    """A parent is absorbed where its latent loses more than this share of its recall on rows with an active child."""


@dataclass(frozen=True)
class World:
    """What SAEs at one hook share."""

    truth: "Truth"
    on: NDArray[np.bool_]
    """(rows, N): which feature is on in which held-out row."""
    rows: NDArray[np.uint16]
    """(rows, d), bit patterns of bfloat16."""
    chance: dict[int, tuple[float, float]]
    """By number of latents: mean and deviation of the MCC of random decoders."""


def not_run(config: RecoveryConfig, context: BenchmarkContext) -> NotRun | None:
    """Why nothing can be compared with the truth here."""
    del config
    if context.manifest.spec.is_synthetic:
        return None
    return NotRun(
        "The activations are those of a language model, whose features nobody knows.",
        "Run the profile synthetic, or set evaluate.recovery to null.",
    )


def prepare(config: RecoveryConfig, context: BenchmarkContext) -> dict[str, World]:
    """Reads the truth and the held-out rows of every hook, and measures what random decoders reach."""
    from store.cache.truth import read_truth

    del config
    worlds = {}
    cache = context.held_out_cache
    for hook in context.hooks:
        truth = read_truth(cache.files, context.manifest, hook)
        sizes = sorted({card.d_sae for card in context.cards.values() if card.hook == hook})
        worlds[hook] = World(
            truth=truth,
            on=truth.fires(),
            rows=cache.rows(hook, np.arange(context.manifest.split_rows("held_out")), split="held_out"),
            chance={size: chance_correlation(truth.directions, num_latents=size) for size in sizes},
        )
        context.progress(1)
    return worlds


def measure(
    sae: EvaluatedSAE, config: RecoveryConfig, context: BenchmarkContext, shared: dict[str, World]
) -> Measurement:
    """Compares decoder and firing of the SAE with the features of its hook.

    Metrics: mcc and mcc_chance; found (share of features); precision, recall and f1, means over features; uniqueness
    and the most it can be, uniqueness_cap = min(1, N / F); f1 and found by thirds of firing frequency, and of roots and
    children; parents_absorbed (share of the parents) and leak, where there is a hierarchy; true_l0.
    """
    world = shared[sae.card.hook]
    truth, decoder = world.truth, sae.weights.W_dec
    cosines = match(decoder, truth.directions)
    children = children_of(truth.parents)
    by_sequence = _counts(sae, world, cosines.best_latent, children, context)
    fired = by_sequence.sum(axis=0, keepdims=True)
    values = partial(_from_totals, truth=truth, num_parents=len(children), lost_recall=config.lost_recall)
    left_out = without_one(by_sequence, values)
    found = cosines.best_cosine >= config.found_cosine
    chance, deviation = world.chance[sae.card.d_sae]
    mcc = correlation(decoder, truth.directions)
    metrics = {
        "mcc": mcc,
        "mcc_chance": chance,
        "found": float(found.mean()),
        **{name: float(value[0]) for name, value in values(fired).items()},
        "uniqueness": uniqueness(decoder, truth.directions),
        "uniqueness_cap": min(1.0, truth.num_features / sae.card.d_sae),
        **{f"found_{name}": float(found[chosen].mean()) for name, chosen in _groups(truth).items()},
        "true_l0": truth.mean_active,
    }
    if children:
        metrics["leak"] = mean_leak(cosines, truth.directions, truth.parents)
    return Measurement(
        metrics=metrics,
        basis={
            "features": truth.num_features,
            "rows": len(world.on),
            "sequences": len(by_sequence),
            **({"parents": len(children)} if children else {}),
        },
        standard_errors={"mcc_chance": deviation, **standard_errors(left_out)},
        arrays=as_arrays(left_out),
        remarks=_remarks(mcc, chance, deviation),
        details=_details(truth, cosines.best_cosine, Counts.unflat(
            fired[0], num_features=truth.num_features, num_parents=len(children)
        ), children, config),
    )  # fmt: skip


def _counts(
    sae: EvaluatedSAE,
    world: World,
    latents: NDArray[np.int64],
    children: dict[int, NDArray[np.int64]],
    context: BenchmarkContext,
) -> Array:
    """Counts by sequence, (sequences, 3 N + 4 P)."""
    weights = sae.weights
    fired = np.empty_like(world.on)
    with torch.no_grad():
        for start in range(0, len(world.rows), BATCH_ROWS):
            bits = world.rows[start : start + BATCH_ROWS].astype(np.uint32) << 16
            activations = encode(weights, torch.from_numpy(bits.view(np.float32)))
            fired[start : start + len(bits)] = (activations > 0).numpy()[:, latents]
    per_sequence = context.manifest.spec.rows_per_sequence
    return np.stack([
        count(fired[start : start + per_sequence], world.on[start : start + per_sequence], children).flat()
        for start in range(0, len(fired), per_sequence)
    ])  # fmt: skip


def _groups(truth: "Truth") -> dict[str, NDArray[np.int64]]:
    """Features by how often they fire and, in a hierarchy, by depth."""
    groups = thirds(truth.frequencies)
    if (truth.parents >= 0).any():
        groups |= {"roots": np.flatnonzero(truth.depths == 0), "children": np.flatnonzero(truth.depths > 0)}
    return groups


def _from_totals(totals: Array, *, truth: "Truth", num_parents: int, lost_recall: float) -> dict[str, Array]:
    """Metrics of totals (n, 3 N + 4 P), each (n,)."""
    counts = Counts.unflat(totals, num_features=truth.num_features, num_parents=num_parents)
    detected = detection(counts)
    everywhere = np.arange(truth.num_features)
    metrics = {
        "precision": mean_of(detected.precision, everywhere),
        "recall": mean_of(detected.recall, everywhere),
        "f1": mean_of(detected.f1, everywhere),
        **{f"f1_{name}": mean_of(detected.f1, chosen) for name, chosen in _groups(truth).items()},
    }
    if num_parents:
        metrics["parents_absorbed"] = absorbed(counts, lost_recall=lost_recall).mean(axis=-1)
    return metrics


def _remarks(mcc: float, chance: float, deviation: float) -> tuple[str, ...]:
    if mcc > chance + CHANCE_FACTOR * deviation:
        return ()
    return (
        f"MCC is {mcc:.3f}, and {chance:.3f} by chance: this decoder knows nothing of the features. What absorption "
        "and leak say of it is no merit.",
    )


def _details(
    truth: "Truth", cosines: Array, counts: Counts, children: dict[int, NDArray[np.int64]], config: RecoveryConfig
) -> dict[str, JsonValue]:
    """Of each feature, and of each depth of the hierarchy."""
    detected = detection(counts)
    depths = truth.depths
    return {
        "best_cosine": _rounded(cosines),
        "f1": _rounded(detected.f1),
        "precision": _rounded(detected.precision),
        "recall": _rounded(detected.recall),
        "frequency": _rounded(truth.frequencies),
        "depth": depths.tolist(),
        "by_depth": [
            {
                "depth": int(depth),
                "features": int((depths == depth).sum()),
                "found": float((cosines[depths == depth] >= config.found_cosine).mean()),
                "f1": float(detected.f1[depths == depth].mean()),
            }
            for depth in np.unique(depths)
        ],
        "parents": list(children),
        "parents_absorbed": absorbed(counts, lost_recall=config.lost_recall).astype(bool).tolist(),
    }


def _rounded(values: Array) -> list[JsonValue]:
    return [round(float(value), 6) for value in values]


_GROUP_METRICS = ("rare", "middle", "frequent", "roots", "children")

BENCHMARK = Benchmark(
    name="recovery",
    config=RecoveryConfig,
    needs=frozenset({"held_out_rows", "truth"}),
    version=CodeVersion(
        number=1,
        files=(
            "evaluate/benchmarks/benchmark.py",
            "evaluate/benchmarks/context.py",
            "evaluate/benchmarks/recovery.py",
            "evaluate/jackknife.py",
            "evaluate/recovery",
            "store/cache/truth.py",
            "store/sae/weights.py",
        ),
        code_sha256="bf93b00215e2c43d597baae5116119cf9c81c1699a21fbaab0e53006ec853e04",
    ),
    units="sequences",
    metrics={
        "mcc": "higher",
        "mcc_chance": "neither",
        "found": "higher",
        "f1": "higher",
        "precision": "higher",
        "recall": "higher",
        "uniqueness": "higher",
        "uniqueness_cap": "neither",
        "parents_absorbed": "lower",
        "leak": "lower",
        **{f"f1_{name}": "higher" for name in _GROUP_METRICS},
        **{f"found_{name}": "higher" for name in _GROUP_METRICS},
        "true_l0": "neither",
    },
    optional=frozenset({"parents_absorbed", "leak", "f1_roots", "f1_children", "found_roots", "found_children"}),
    headlines=("mcc", "found", "f1"),
    floors={"mcc": "mcc_chance"},
    measures="How well the SAE finds the features that its activations were made from: decoder directions, when "
    "latents fire, and what a hierarchy does to parents. Absorption and leak are no merit where MCC is at chance.",
    not_run=not_run,
    prepare=prepare,
    measure=measure,
)
