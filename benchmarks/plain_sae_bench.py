"""sae-bench by itself: each benchmark as its own code runs it on one SAE, with nothing shared between SAEs.

The peer of benchmarks/evaluate_sweep.py, and what tests compare our numbers with. The language model is loaded anew for
each SAE, as sae-bench's `run_eval` does once per call.
"""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import run_evals
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor

from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.core import CoreConfig
from evaluate.sae_bench import StoredSAE, to_sae_bench
from store.sae.artefact import load_sae


class Float32Losses:
    """The language model as sae-bench's `run_evals` calls it, with logits and losses in float32."""

    def __init__(self, bridge: Any) -> None:  # noqa: ANN401 - a TransformerBridge
        self.bridge = bridge

    def __call__(self, tokens: Tensor, **keywords: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - passed on
        """Logits (sequences, context, vocabulary) and losses (sequences, context - 1)."""
        return self.run_with_hooks(tokens, fwd_hooks=[], **keywords)

    def run_with_hooks(
        self, tokens: Tensor, *, return_type: str, fwd_hooks: list[tuple[str, Any]], loss_per_token: bool
    ) -> tuple[Tensor, Tensor]:
        """The same with activations replaced by hooks."""
        if return_type != "both" or not loss_per_token:
            raise ValueError(f"expected sae-bench to ask for logits and losses per token, got {return_type}")
        logits = self.bridge.run_with_hooks(tokens, return_type="logits", fwd_hooks=fwd_hooks).float()
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
        return logits, losses

    def run_with_cache(self, *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - passed on as they are
        """Activations, in the language model's own number format."""
        return self.bridge.run_with_cache(*arguments, **keywords)


def core(
    bridge: Any,  # noqa: ANN401 - a TransformerBridge
    sae: StoredSAE,
    tokens: NDArray[np.uint32],
    *,
    num_reconstruction_sequences: int,
    num_sparsity_sequences: int,
    batch_sequences: int,
    ignored: frozenset[int],
) -> dict[str, float]:
    """sae-bench `core` of one SAE on held-out `tokens` (sequences, context); the language model runs for it alone."""
    context_length = tokens.shape[1]
    found: dict[str, float] = {}
    for loss, num_sequences in ((True, num_reconstruction_sequences), (False, num_sparsity_sequences)):
        windows = datasets.Dataset.from_dict({"tokens": tokens[:num_sequences].astype(np.int64)})
        store = ActivationsStore.from_sae(
            bridge, sae, windows.to_iterable_dataset(), context_size=context_length,
            store_batch_size_prompts=batch_sequences, total_tokens=num_sequences * context_length,
            device=str(sae.device),
        )  # fmt: skip
        num_batches = num_sequences // batch_sequences
        settings = CoreEvalConfig(
            model_name="any", batch_size_prompts=batch_sequences, context_size=context_length,
            n_eval_reconstruction_batches=num_batches, n_eval_sparsity_variance_batches=num_batches,
            compute_kl=loss, compute_ce_loss=loss, compute_l2_norms=not loss, compute_sparsity_metrics=not loss,
            compute_variance_metrics=not loss, exclude_special_tokens_from_reconstruction=True,
        )  # fmt: skip
        scalars, _ = run_evals(sae, store, Float32Losses(bridge), settings, ignore_tokens=set(ignored))
        found |= {name: float(value) for values in scalars.values() for name, value in values.items()}
    return found


def run_core(context: BenchmarkContext, config: CoreConfig, folder: Path) -> dict[str, float]:
    """`core` of the SAE in `folder`, everything loaded for it alone."""
    weights, card = load_sae(folder)
    sae = to_sae_bench(weights, card, device=context.device)
    return core(
        context.language_model.bridge, sae, context.held_out,
        num_reconstruction_sequences=config.num_reconstruction_sequences,
        num_sparsity_sequences=config.num_sparsity_sequences, batch_sequences=config.batch_sequences,
        ignored=context.language_model.ignored_token_ids,
    )  # fmt: skip
