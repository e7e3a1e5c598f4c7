"""Activations against HookedTransformer, TransformerLens's own code, which shares nothing with transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import (
    convert_gemma_weights,
    convert_gpt2_weights,
    convert_llama_weights,
    convert_neox_weights,
    convert_qwen2_weights,
)

from benchmarks.miniatures import BOS, D_MODEL, NUM_LAYERS, POSITIONS, VOCAB_SIZE, save_miniature
from harvest.activations import hidden_states, load_cut_model
from language_model.hooks import SITES
from language_model.load import load_model

_SIZES = {
    "d_model": D_MODEL, "n_layers": NUM_LAYERS, "n_ctx": POSITIONS, "d_vocab": VOCAB_SIZE, "n_heads": 2, "d_head": 16,
    "d_mlp": 64, "device": "cpu",
}  # fmt: skip
_LLAMA = _SIZES | {
    "normalization_type": "RMS", "final_rms": True, "gated_mlp": True, "act_fn": "silu", "n_key_value_heads": 1,
    "positional_embedding_type": "rotary", "rotary_adjacent_pairs": False, "rotary_dim": 16, "eps": 1e-6,
}  # fmt: skip
_GEMMA = _LLAMA | {"act_fn": "gelu_pytorch_tanh"}
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (convert_gpt2_weights, _SIZES | {
        "normalization_type": "LN", "act_fn": "gelu_new", "d_mlp": 128, "positional_embedding_type": "standard"}),
    "gpt_neox": (convert_neox_weights, _SIZES | {
        "normalization_type": "LN", "act_fn": "gelu", "parallel_attn_mlp": True, "positional_embedding_type": "rotary",
        "rotary_dim": 4, "rotary_adjacent_pairs": False}),
    "llama": (convert_llama_weights, _LLAMA),
    "qwen2": (convert_qwen2_weights, _LLAMA),
    "gemma": (convert_gemma_weights, _GEMMA),
    "gemma2": (convert_gemma_weights, _GEMMA | {
        "use_normalization_before_and_after": True, "attn_scores_soft_cap": 50.0, "output_logits_soft_cap": 30.0,
        "use_local_attn": True, "window_size": 4, "attn_types": ["local", "global", "local"], "attn_scale": 4.0}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", CONFIGS)
def test_every_site_is_where_hooked_transformer_has_it(kind: str, tmp_path: Path) -> None:
    convert, settings = CONFIGS[kind]
    folder = save_miniature(tmp_path, kind)
    config = HookedTransformerConfig(**settings)
    theirs = HookedTransformer(config, move_to_device=False)
    theirs.load_state_dict(convert(load_model(folder, dtype=torch.float32, device="cpu"), config), strict=False)
    tokens = torch.randint(BOS + 1, 259, (2, 12), generator=torch.Generator().manual_seed(0))
    hooks = [f"blocks.{layer}.hook_{site}" for layer in range(NUM_LAYERS) for site in SITES]
    ours = hidden_states(load_cut_model(folder, hooks, dtype=torch.float32, device="cpu"), tokens)
    with torch.inference_mode():
        _, cache = theirs.run_with_cache(tokens)
    for hook in hooks:
        assert float((ours[hook] - cache[hook]).abs().max()) < 1e-5 * float(cache[hook].abs().max()), hook
