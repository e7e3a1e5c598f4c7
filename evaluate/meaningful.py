"""Whether a language model and SAEs are large enough for a benchmark, told before anything is loaded."""

import math
from pathlib import Path

from evaluate.benchmarks.benchmark import NotRun
from evaluate.benchmarks.context import BenchmarkContext
from language_model.checkpoint import tensor_headers


def num_parameters(folder: Path) -> int:
    """Numbers in the weights of a checkpoint, by the headers of its files."""
    return sum(math.prod(header.shape) for header in tensor_headers(folder).values())


def model_too_small(benchmark: str, context: BenchmarkContext, *, least: int) -> NotRun | None:
    """Why the language model is too small for a benchmark; None where it is not."""
    found = num_parameters(context.model_folder)
    if found >= least:
        return None
    return NotRun(
        f"The language model has {found:,} parameters; {benchmark} means something from {least:,} on "
        f"(evaluate.{benchmark}.min_model_parameters).",
        "Run it on a larger language model, such as profile gemma-2-2b; lower that setting to try it all the same.",
    )


def too_few_latents(benchmark: str, context: BenchmarkContext, *, least: int) -> NotRun | None:
    """Why no SAE has enough latents for a benchmark; None where one has."""
    widest = max(card.d_sae for card in context.cards.values())
    if widest >= least:
        return None
    return NotRun(
        f"The widest SAE has {widest:,} latents; {benchmark} means something from {least:,} on "
        f"(evaluate.{benchmark}.min_latents).",
        "Train wider SAEs (train.d_sae); lower that setting to try it all the same.",
    )


def narrow_remark(benchmark: str, d_sae: int, *, least: int) -> tuple[str, ...]:
    """The remark beside the metrics of an SAE that has fewer latents than a benchmark needs; none for others."""
    if d_sae >= least:
        return ()
    return (f"This SAE has {d_sae:,} latents; {benchmark} means something from {least:,} on.",)
