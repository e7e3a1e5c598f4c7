"""sae-bench by itself: each benchmark as its own code runs it on one SAE, with nothing shared between SAEs.

The peer of benchmarks/evaluate_sweep.py, and what tests compare our numbers with. The language model is loaded anew for
each SAE, as sae-bench's `run_eval` does once per call.
"""

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from sae_bench.evals.autointerp.eval_config import AutoInterpEvalConfig
from sae_bench.evals.autointerp.main import run_eval_single_sae
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.main import run_evals
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor

from evaluate.benchmarks.autointerp import AutoInterpConfig
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.core import CoreConfig
from evaluate.judge.lexical import LexicalBaseline
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


@contextlib.contextmanager
def lexical_server() -> Iterator[str]:
    """The address of a server on this machine where the lexical baseline answers in OpenAI's protocol."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = LexicalBaseline().reply(asked["messages"], max_tokens=asked["max_tokens"])
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            fields = {"id": "1", "object": "chat.completion", "created": 0, "model": asked["model"]}
            body = json.dumps(fields | {"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Prints nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run_autointerp(context: BenchmarkContext, config: AutoInterpConfig, folder: Path) -> dict[int, float]:
    """`autointerp` of the SAE in `folder`: its two passes of the language model, its client, and a judge behind HTTP.

    The judge is the lexical baseline on this machine. Latents are those that sae-bench chooses.
    """
    weights, card = load_sae(folder)
    sae = to_sae_bench(weights, card, device=context.device)
    tokens = torch.from_numpy(context.held_out.astype(np.int64))
    with tempfile.TemporaryDirectory() as artifacts, lexical_server() as base_url:
        os.environ["OPENAI_BASE_URL"] = base_url
        torch.save(tokens, Path(artifacts) / f"any_{tokens.numel()}_tokens_{tokens.shape[1]}_ctx.pt")
        found = run_eval_single_sae(
            AutoInterpEvalConfig(
                model_name="any", n_latents=config.num_latents, llm_context_size=tokens.shape[1],
                llm_batch_size=config.batch_sequences, llm_dtype="float32", total_tokens=tokens.numel(),
            ),
            sae, context.language_model.hooked, str(context.device), artifacts, "no-key",
        )  # fmt: skip
    torch.set_grad_enabled(True)
    return {latent: entry["score"] for latent, entry in found.items()}
