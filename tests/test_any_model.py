"""Families, sites and policies of BOS from text to benchmark: what is stored, and what `core` makes of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.miniatures import BOS, D_MODEL, plain_activations, save_miniature
from evaluate.benchmarks import core
from evaluate.benchmarks.benchmark import EvaluatedSAE, Measurement
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.kept import KeptSetUps
from harvest.config import HarvestConfig
from harvest.dispatch import HarvestResources
from harvest.run import run
from language_model.config import LanguageModelConfig
from language_model.load import load_model
from language_model.special_tokens import special_tokens
from store.cache.manifest import Manifest
from store.care.info import describe
from store.read.cache import ActivationCache
from store.sae.artefact import load_sae, save_sae
from store.sae.weights import SAEWeights

CONTEXT_LENGTH, NUM_HELD_OUT = 12, 6


@dataclass(frozen=True)
class Case:
    """A family, a hook, and the module of the plain model whose output (or input) that hook is."""

    kind: str
    hook: str
    module: str
    is_input: bool = False
    policy: tuple[tuple[str, Any], ...] = ()
    config: tuple[tuple[str, Any], ...] = ()


CASES = {
    "gemma2, what the attention adds": Case("gemma2", "blocks.1.hook_attn_out", "layers.1.post_attention_layernorm"),
    "gpt2, before the first layer": Case("gpt2", "blocks.0.hook_resid_pre", "h.0", is_input=True),
    "gpt_neox, what the MLP adds": Case("gpt_neox", "blocks.2.hook_mlp_out", "layers.2.mlp"),
    "gemma3_text, two positions left out": Case(
        "gemma3_text", "blocks.1.hook_resid_post", "layers.1", policy=(("num_positions_left_out", 2),)
    ),
    "qwen2, without BOS": Case(
        "qwen2",
        "blocks.2.hook_resid_pre",
        "layers.2",
        is_input=True,
        policy=(("first_token", "text"),),
        config=(("bos_token_id", None),),
    ),
    "llama, BOS and the first position too": Case(
        "llama", "blocks.1.hook_mlp_out", "layers.1.mlp", policy=(("num_positions_left_out", 0),)
    ),
}


@dataclass(frozen=True)
class Harvested:
    case: Case
    folder: Path
    output: Path
    manifest: Manifest

    def plain(self) -> Any:  # noqa: ANN401 - a model of transformers
        return load_model(self.folder, dtype=torch.float32, device="cpu")


@pytest.fixture(params=CASES)
def harvested(request: pytest.FixtureRequest, tmp_path: Path) -> Harvested:
    case = CASES[request.param]
    folder = save_miniature(tmp_path / "model", case.kind, **dict(case.config))
    if "bos_token_id" in dict(case.config):
        names = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(names | {"bos_token": None}))
    texts = tmp_path / "text.jsonl"
    texts.write_text("".join(json.dumps({"text": f"Story {n}: {n * n} foxes."}) + "\n" for n in range(60)))
    config = HarvestConfig.model_validate(
        {
            "text": {"kind": "files", "paths": [str(texts)], "column": "text"},
            "hooks": [case.hook],
            "num_rows": 200,
            "num_held_out_sequences": NUM_HELD_OUT,
            "held_out_fraction": 0.3,
            "context_length": CONTEXT_LENGTH,
            "forward_batch_sequences": 2,
            "sequences_per_chunk": 2,
            "chunks_per_shard": 3,
            "codec": "bf16_planes_v1",
            **dict(case.policy),
        }
    )
    output = tmp_path / "activations"
    model = LanguageModelConfig(name=str(folder), revision=None, compute_dtype="float32")
    manifest = run(
        config, model=model, output=output, scratch=tmp_path / "scratch", resources=HarvestResources("cpu"), reuse=False
    )
    return Harvested(case, folder, output, manifest)


def test_the_rows_are_the_plain_models_at_the_positions_that_are_kept(harvested: Harvested) -> None:
    cache, spec = ActivationCache(harvested.output), harvested.manifest.spec
    policy = {"first_token": "bos", "num_positions_left_out": 1} | dict(harvested.case.policy)
    begins_with_bos = policy["first_token"] == "bos"
    first = policy["num_positions_left_out"]
    tokens = cache.tokens(split="held_out")
    assert (bool((tokens[:, 0] == BOS).all()), bool((tokens[:, 1:] == BOS).any())) == (begins_with_bos, False)
    per_sequence = CONTEXT_LENGTH - first
    rows = cache.rows(harvested.case.hook, np.arange(NUM_HELD_OUT * per_sequence), split="held_out")
    plain = harvested.plain()
    for start in range(0, NUM_HELD_OUT, 2):  # the same batch shape
        windows = torch.from_numpy(tokens[start : start + 2].astype(np.int64))
        states = plain_activations(plain, windows)[harvested.case.hook][:, first:]
        rounded = states.to(torch.bfloat16).view(torch.uint16).numpy().reshape(-1, D_MODEL)
        assert np.array_equal(rows[start * per_sequence : (start + 2) * per_sequence], rounded)
    assert cache.locate(per_sequence) == (1, first)
    assert spec.attention == ("eager" if harvested.case.kind == "gemma2" else "sdpa")
    told = describe(harvested.output)
    assert f"sequences begin  with {'BOS' if begins_with_bos else 'text, without BOS'}" in told
    assert f"excluded         {', '.join(spec.excluded_positions) or 'no positions'}" in told


def test_core_counts_the_positions_with_rows_and_replaces_the_hook_there(harvested: Harvested, tmp_path: Path) -> None:
    tokens = torch.from_numpy(ActivationCache(harvested.output).held_out_tokens().astype(np.int64))
    counted = ~torch.isin(tokens, torch.tensor(sorted(special_tokens(harvested.folder).ignored)))
    counted[:, : harvested.manifest.spec.num_excluded_positions] = False
    exact = measure(harvested, tmp_path, "exact", identity_sae(dead=False)).metrics
    assert exact["num_rows"] == counted.sum()
    assert exact["l0"] == D_MODEL  # one of +x_i and -x_i for each channel
    assert exact["explained_variance"] == pytest.approx(1.0, abs=1e-6)
    assert exact["ce_loss_without_sae"] == pytest.approx(cross_entropy(harvested, tokens, counted, None), abs=1e-5)
    assert exact["ce_loss_with_sae"] == pytest.approx(exact["ce_loss_without_sae"], abs=1e-5)
    nothing = torch.zeros_like(counted)
    assert exact["ce_loss_with_ablation"] == pytest.approx(cross_entropy(harvested, tokens, counted, nothing), abs=1e-5)
    dead = measure(harvested, tmp_path, "dead", identity_sae(dead=True)).metrics
    assert dead["l0"] == 0
    assert dead["ce_loss_with_sae"] == pytest.approx(cross_entropy(harvested, tokens, counted, ~counted), abs=1e-5)
    assert dead["ce_loss_with_sae"] != pytest.approx(dead["ce_loss_without_sae"], abs=1e-3)


def identity_sae(*, dead: bool) -> SAEWeights:
    """Latents +x_i and -x_i, or ones that never fire."""
    identity = torch.eye(D_MODEL)
    return SAEWeights(
        W_enc=torch.cat([identity, -identity], dim=1),
        b_enc=torch.full((2 * D_MODEL,), -1e6 if dead else 0.0),
        W_dec=torch.cat([identity, -identity], dim=0),
        b_dec=torch.zeros(D_MODEL),
    )


def measure(harvested: Harvested, root: Path, name: str, weights: SAEWeights) -> Measurement:
    spec = harvested.manifest.spec
    fields = {
        "name": name, "key": "0" * 64, "architecture": "relu", "hook": harvested.case.hook, "model": spec.model,
        "cache_digest": harvested.manifest.digest, "context_length": CONTEXT_LENGTH, "first_token": spec.first_token,
        "excluded_positions": spec.excluded_positions, "scale": 1.0, "seed": 0, "num_steps": 1, "num_training_rows": 1,
        "train_version": 1, "variant": {}, "train": {}, "final": {},
    }  # fmt: skip
    save_sae(root / name, weights, fields, [])
    weights, card = load_sae(root / name)
    saelens = json.loads((root / name / "cfg.json").read_text())
    assert saelens["metadata"]["prepend_bos"] == (spec.first_token == "bos")
    context = BenchmarkContext(
        place=harvested.output,
        manifest=harvested.manifest,
        model=LanguageModelConfig(name=str(harvested.folder), revision=None, compute_dtype="float32"),
        cards={name: card},
        held_out=ActivationCache(harvested.output).held_out_tokens(),
        kept=KeptSetUps(root / "set-ups", budget_bytes=2**30),
        device=torch.device("cpu"),
    )
    config = core.CoreConfig(num_reconstruction_sequences=6, num_sparsity_sequences=6, batch_sequences=2)
    return core.measure(EvaluatedSAE(name, weights, card), config, context, core.prepare(config, context))


@torch.no_grad()
def cross_entropy(harvested: Harvested, tokens: Tensor, counted: Tensor, keep: Tensor | None) -> float:
    """Nats per prediction at counted positions, with the hook's activations zero but where `keep` says; None: all."""
    model = harvested.plain()
    module = model.base_model.get_submodule(harvested.case.module)

    def zeroed(state: Tensor) -> Tensor:
        return state if keep is None else torch.where(keep[..., None], state, torch.zeros_like(state))

    def before(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (zeroed(arguments[0]), *arguments[1:])

    def behind(_module: nn.Module, _arguments: Any, output: Any) -> Any:  # noqa: ANN401 - torch's signature
        return (zeroed(output[0]), *output[1:]) if isinstance(output, tuple) else zeroed(output)

    if harvested.case.is_input:
        module.register_forward_pre_hook(before)
    else:
        module.register_forward_hook(behind)
    logits = model(input_ids=tokens).logits[:, :-1]
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return float(losses[counted[:, :-1]].mean())
