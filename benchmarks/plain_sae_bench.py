"""sae-bench by itself: each benchmark as its own code runs it on one SAE, with nothing shared between SAEs.

The peer of benchmarks/evaluate_sweep.py, and what tests compare our numbers with. The language model is loaded anew for
each SAE, as sae-bench's `run_eval` does once per call.
"""

import contextlib
import functools
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
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
from sae_bench.evals.meta_structure.eval_config import MetaStructureEvalConfig
from sae_bench.evals.meta_structure.main import run_eval_single_sae as train_meta_sae
from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig
from sae_bench.evals.scr_and_tpp.main import run_eval_single_sae as run_perturbation
from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
from sae_bench.evals.sparse_probing.main import run_eval_single_sae as run_probing
from sae_bench.evals.sparse_probing_sae_probes.eval_config import SparseProbingSaeProbesEvalConfig
from sae_bench.evals.sparse_probing_sae_probes.main import run_eval as run_sae_probes
from sae_bench.sae_bench_utils import dataset_utils
from sae_lens.training.activations_store import ActivationsStore
from sae_probes.generate_model_activations import ensure_dataset_activations
from torch import Tensor

from evaluate.benchmarks.autointerp import AutoInterpConfig
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.core import CoreConfig
from evaluate.benchmarks.meta_structure import MetaStructureConfig
from evaluate.benchmarks.sparse_probing import SparseProbingConfig
from evaluate.benchmarks.sparse_probing_sae_probes import SaeProbesConfig, task_names
from evaluate.benchmarks.tpp import N_VALUES, TppConfig
from evaluate.judge.lexical import LexicalBaseline
from evaluate.labelled.config import Labels
from evaluate.labelled.substitute import known_to_sae_bench
from evaluate.labelled.texts import load
from evaluate.sae_bench import StoredSAE, to_sae_bench
from evaluate.substituted import attribute, quiet
from store.record import plain
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


def run_sparse_probing(context: BenchmarkContext, config: SparseProbingConfig, folder: Path) -> dict[str, float]:
    """`sparse_probing` of the SAE in `folder`: activations and probes of the language model for it alone."""
    settings = SparseProbingEvalConfig(
        random_seed=config.random_seed, dataset_names=[labels.name for labels in config.datasets],
        probe_train_set_size=config.probe_train_set_size, probe_test_set_size=config.probe_test_set_size,
        context_length=config.context_length, sae_batch_size=config.sae_batch_size,
        llm_batch_size=config.llm_batch_size, llm_dtype=context.manifest.spec.compute_dtype, model_name="any",
    )  # fmt: skip
    sizes = config.probe_train_set_size, config.probe_test_set_size
    return _on_texts(
        context, config.datasets, sizes, config.random_seed, folder, functools.partial(run_probing, settings)
    )


def run_tpp(context: BenchmarkContext, config: TppConfig, folder: Path) -> dict[str, float]:
    """`tpp` of the SAE in `folder`: activations and probes of the language model for it alone."""
    d_sae = load_sae(folder)[1].d_sae
    settings = ScrAndTppEvalConfig(
        random_seed=config.random_seed, dataset_names=[labels.name for labels in config.datasets], perform_scr=False,
        early_stopping_patience=config.early_stopping_patience, train_set_size=config.train_set_size,
        test_set_size=config.test_set_size, context_length=config.context_length, probe_epochs=config.probe_epochs,
        sae_batch_size=config.sae_batch_size, llm_batch_size=config.llm_batch_size,
        llm_dtype=context.manifest.spec.compute_dtype, model_name="any", n_values=[n for n in N_VALUES if n <= d_sae],
    )  # fmt: skip
    sizes = config.train_set_size, config.test_set_size
    return _on_texts(
        context, config.datasets, sizes, config.random_seed, folder, functools.partial(run_perturbation, settings)
    )


def _on_texts(
    context: BenchmarkContext,
    datasets_of: Sequence[Labels],
    sizes: tuple[int, int],
    seed: int,
    folder: Path,
    run: Callable[..., tuple[dict[str, Any], Any]],
) -> dict[str, float]:
    """sae-bench's averages over data sets that are on this machine."""
    sae = to_sae_bench(*load_sae(folder), device=context.device)
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory(prefix="plain-sae-bench-") as artifacts:
        texts = [load(labels, train_size=sizes[0], test_size=sizes[1], seed=seed) for labels in datasets_of]
        by_name = {found.name: (dict(found.train), dict(found.test)) for found in texts}
        for labels, found in zip(datasets_of, texts, strict=True):
            stack.enter_context(known_to_sae_bench(labels, found, classes=list(found.train)))
        # Each of these knows its own data set alone: here one function knows all.
        stack.enter_context(attribute(dataset_utils, "get_multi_label_train_test_data", lambda name, *_: by_name[name]))
        stack.enter_context(quiet())
        averages, _ = run(sae, context.language_model.hooked, str(context.device), artifacts)
    return {name: float(value) for name, value in averages.items() if not isinstance(value, dict)}


def run_sparse_probing_sae_probes(context: BenchmarkContext, config: SaeProbesConfig, folder: Path) -> dict[str, Any]:
    """`sparse_probing_sae_probes` of the SAE in `folder`, with the language model's own probes, for it alone."""
    sae = to_sae_bench(*load_sae(folder), device=context.device)
    hook = str(sae.cfg.hook_name)
    bridge = context.language_model.bridge
    with tempfile.TemporaryDirectory(prefix="plain-sae-bench-") as name, quiet():
        ensure_dataset_activations(
            "model", task_names(config), [hook], f"{name}/activations", device=str(context.device),
            batch_size=config.llm_batch_size, max_seq_len=min(1024, context.language_model.max_positions),
            model=bridge,
        )  # fmt: skip
        settings = SparseProbingSaeProbesEvalConfig(
            model_name="model", random_seed=config.random_seed, dataset_names=task_names(config),
            results_path=f"{name}/results", model_cache_path=f"{name}/activations",
        )  # fmt: skip
        found = run_sae_probes(settings, [("sae", sae)], str(context.device), f"{name}/output", force_rerun=True)
    (output,) = found.values()
    return dict(output["eval_result_metrics"])


def run_meta_structure(context: BenchmarkContext, config: MetaStructureConfig, folder: Path) -> dict[str, float]:
    """`meta_structure` of the SAE in `folder`."""
    sae = to_sae_bench(*load_sae(folder), device=context.device)
    torch.manual_seed(config.random_seed)
    settings: Any = plain(config)
    output = train_meta_sae("any", "any", sae, MetaStructureEvalConfig(**settings), str(context.device))
    found = output.eval_result_metrics.meta_structure
    return {"decoder_fraction_variance_explained": float(found.decoder_fraction_variance_explained)}
