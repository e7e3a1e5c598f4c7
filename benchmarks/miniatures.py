"""Random checkpoints of every family in language_model/families.py, laid out like the hub's: 3 layers of 32 channels.

All weights are random, norms and biases too, and large enough that every part matters: a hook in a wrong place is off
by as much as the activations themselves.

`plain_activations` reads what a model computes by forward hooks of its own, on modules whose names are written down
here by hand: it knows nothing of families.py, which is compared with it.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

NUM_LAYERS, D_MODEL, VOCAB_SIZE, POSITIONS = 3, 32, 300, 64
PAD, EOS, BOS = 0, 1, 2

_TOKENS = {"vocab_size": VOCAB_SIZE, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": BOS}
_LLAMA = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": NUM_LAYERS,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": POSITIONS,
}
_GEMMA = _LLAMA | {"head_dim": 16}
SIZES: dict[str, dict[str, Any]] = {
    "gemma": _GEMMA,
    "gemma2": _GEMMA | {"query_pre_attn_scalar": 16, "sliding_window": 4},
    "gemma3_text": _GEMMA | {"query_pre_attn_scalar": 16, "sliding_window": 4, "layer_types": [
        "sliding_attention", "full_attention", "sliding_attention"]},
    "gpt2": {"n_embd": D_MODEL, "n_layer": NUM_LAYERS, "n_head": 2, "n_positions": POSITIONS},
    "gpt_neo": {"hidden_size": D_MODEL, "num_layers": NUM_LAYERS, "num_heads": 2, "window_size": 4,
        "attention_types": [[["global", "local"], 1], [["global"], 1]], "max_position_embeddings": POSITIONS},
    "gpt_neox": {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"},
    "granite": _LLAMA | {"residual_multiplier": 0.5},
    "llama": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": 4},
    "mixtral": _LLAMA | {"num_local_experts": 2},
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": _LLAMA | {"sliding_window": 4},
    "phi": _LLAMA,
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _GEMMA,
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
}  # fmt: skip
"""Settings of config.json, by model type."""


_LIKE_LLAMA = ("model.layers.{}", "self_attn", "mlp")
_WITH_POST_NORMS = ("model.layers.{}", "post_attention_layernorm", "post_feedforward_layernorm")
PLAIN_MODULES: dict[str, tuple[str, str, str]] = {
    "gemma2": _WITH_POST_NORMS,
    "gemma3_text": _WITH_POST_NORMS,
    "gpt2": ("transformer.h.{}", "attn", "mlp"),
    "gpt_neo": ("transformer.h.{}", "attn", "mlp"),
    "gpt_neox": ("gpt_neox.layers.{}", "attention", "mlp"),
    "olmo2": _WITH_POST_NORMS,
    "olmo3": _WITH_POST_NORMS,
}
"""Of the causal language model: a layer, and in it what gives attn_out and mlp_out; others are like Llama's."""


@torch.inference_mode()
def plain_activations(model: PreTrainedModel, tokens: Tensor) -> dict[str, Tensor]:
    """Activations (B, C, d) of every layer and site, by TransformerLens's names, of a causal language model."""
    layer_name, attention, mlp = PLAIN_MODULES.get(model.config.model_type, _LIKE_LLAMA)
    num_layers, found = int(model.config.num_hidden_layers), dict[str, Tensor]()

    def watch(module: nn.Module, name: str) -> Any:  # noqa: ANN401 - a handle of torch's
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:  # noqa: ANN401 - torch's signature
            found[name] = output[0] if isinstance(output, tuple) else output

        return module.register_forward_hook(keep)

    with ExitStack() as stack:
        for number in range(num_layers):
            layer, prefix = model.get_submodule(layer_name.format(number)), f"blocks.{number}.hook_"
            for part, site in (("", "resid_post"), (attention, "attn_out"), (mlp, "mlp_out")):
                stack.callback(watch(layer.get_submodule(part), prefix + site).remove)
        # states[layer] is what enters a layer; the last one is behind the final norm.
        states = model(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states
    return found | {f"blocks.{number}.hook_resid_pre": states[number] for number in range(num_layers)}


def save_miniature(folder: Path, kind: str, **changes: Any) -> Path:  # noqa: ANN401 - settings of any type
    """Writes a checkpoint of the model type `kind`, the same each time, with settings changed."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SIZES[kind] | _TOKENS | changes))
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def byte_tokenizer() -> Tokenizer:
    """A tokenizer of bytes: <pad> 0, <eos> 1, <bos> 2, and the 256 bytes behind them."""
    special = ["<pad>", "<eos>", "<bos>"]
    vocabulary = {
        token: number for number, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return tokenizer
