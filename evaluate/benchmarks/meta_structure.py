"""The `meta_structure` benchmark of sae-bench: a second, small SAE is trained on the decoder directions of the first.

sae-bench uses its `random_seed` under `__main__` alone, so it is set here before each SAE. Its `train_time_seconds` is
left out: it is no property of the SAE.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from compute.code_version import CodeVersion
from evaluate.benchmarks.benchmark import Benchmark, EvaluatedSAE, Measurement
from evaluate.benchmarks.context import BenchmarkContext
from store.record import Record, plain

PositiveCount = Annotated[int, Field(gt=0)]


class MetaStructureConfig(Record):
    """How the second SAE, a BatchTopK one, is trained. Names and meanings are sae-bench's."""

    random_seed: int
    width_ratio: Annotated[float, Field(gt=0.0, le=1.0)]
    """Latents of the second SAE as a share of the first one's."""
    k: PositiveCount
    """Latents of the second SAE that describe one direction, on average."""
    train_steps: PositiveCount
    train_batch_size: PositiveCount
    """Directions in a step, drawn with replacement."""
    learning_rate: Annotated[float, Field(gt=0.0)]
    weight_decay: Annotated[float, Field(ge=0.0)]
    autocast: bool
    """Whether products are computed in bfloat16."""
    eval_batch_size: PositiveCount
    dead_feature_window: PositiveCount
    """Steps without firing after which a latent of the second SAE counts as dead."""
    feature_sampling_window: PositiveCount
    dtype: Literal["float32"]


def measure(sae: EvaluatedSAE, config: MetaStructureConfig, context: BenchmarkContext, shared: None) -> Measurement:
    """Trains the second SAE on `W_dec` (F, d).

    Metrics: decoder_fraction_variance_explained = 1 - sum ||w - w_hat||^2 / sum ||w - mean(w)||^2 over the F
    directions, and final_reconstruction_mse, per number of W_dec.
    """
    import torch
    from sae_bench.evals.meta_structure.eval_config import MetaStructureEvalConfig
    from sae_bench.evals.meta_structure.main import run_eval_single_sae

    from evaluate.sae_bench import to_sae_bench

    del shared
    adapted = to_sae_bench(sae.weights, sae.card, device=context.device)
    settings: Any = plain(config)
    torch.manual_seed(config.random_seed)
    output = run_eval_single_sae(
        sae.variant, sae.card.hook, adapted, MetaStructureEvalConfig(**settings), str(context.device)
    )
    found = output.eval_result_metrics.meta_structure
    explained = float(found.decoder_fraction_variance_explained)
    d_sae = sae.card.d_sae
    return Measurement(
        metrics={
            "decoder_fraction_variance_explained": explained,
            "final_reconstruction_mse": float(found.final_reconstruction_mse),
        },
        basis={"latents": d_sae, "seeds": 1},
        remarks=_remarks(sae, explained),
        details={"meta_latents": max(math.ceil(d_sae * config.width_ratio), config.k)},
    )


def _remarks(sae: EvaluatedSAE, explained: float) -> tuple[str, ...]:
    W_dec = sae.weights.W_dec
    if bool((W_dec == W_dec[0]).all()):
        return ("All decoder directions are the same, so there is no variance to explain.",)
    if explained < 0.0:
        return (
            "The second SAE explains less of the decoder directions than their mean does: it is not trained to the "
            "end, or the directions have nothing in common.",
        )
    return ()


BENCHMARK = Benchmark(
    name="meta_structure",
    config=MetaStructureConfig,
    needs=frozenset({"decoder"}),
    version=CodeVersion(
        number=1,
        files=(
            "evaluate/benchmarks/benchmark.py",
            "evaluate/benchmarks/context.py",
            "evaluate/benchmarks/meta_structure.py",
            "evaluate/sae_bench.py",
            "language_model/hooks.py",
            "store/sae/weights.py",
        ),
        code_sha256="96752586aa95542443081228b1242fef2d7e0845e2fc477dfe1d430b4a8f3dbe",
    ),
    metrics={
        "decoder_fraction_variance_explained": "lower",
        "final_reconstruction_mse": "higher",
    },
    headlines=("decoder_fraction_variance_explained",),
    measures="How much of the variance of the decoder directions a second, smaller SAE trained on them explains "
    "(sae-bench meta_structure). Lower is better: the latents are then not made of fewer, common parts. A penalty on "
    "the decoder's cosines lowers it by construction, so here it shows that the penalty works and not that the latents "
    "are better.",
    measure=measure,
)
