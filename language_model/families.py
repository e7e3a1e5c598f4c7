"""Families of language models: where Hugging Face keeps their parts, and what it calls their settings.

A row of the table is a model type, as config.json spells it. A model type without a row is refused, because a part
under a guessed name would give other numbers without a word. tests/language_model/test_families.py checks every row
against forward hooks on the plain model and against TransformerLens; a new row needs its sizes there, nothing else.
"""

import re
from dataclasses import dataclass, replace
from typing import Final, Literal

Attention = Literal["eager", "sdpa"]
"""How attention is computed: step by step, or by torch's fused kernels."""


@dataclass(frozen=True)
class Family:
    """The names of one family. The defaults are those that most families share."""

    attention: Attention = "sdpa"
    """`eager` where scores are soft-capped, as no fused kernel does that, and where transformers has nothing else."""
    layers: str = "layers"
    """Attribute of the base model: the list of decoder layers, each of which gives the residual stream behind it."""
    layers_give_tuples: bool = False
    """Whether a layer gives (residual stream, ...) instead of the residual stream."""
    final_norm: str = "norm"
    """Attribute of the base model: the norm behind the last layer."""
    attn_out: str | None = "self_attn"
    """Module of a layer whose output attention adds to the residual stream; None where there is no such tensor."""
    mlp_out: str | None = "mlp"
    """The same for the MLP."""
    mlp: str = "mlp"
    """Module of a layer: the MLP without norms around it."""
    buffers: str | None = None
    """Pattern of the ends of tensor names: masks that older files hold and the model computes itself. Never loaded."""
    d_model: str = "hidden_size"
    """Key of config.json, as are the four below."""
    num_layers: str = "num_hidden_layers"
    vocab_size: str = "vocab_size"
    max_positions: str = "max_position_embeddings"
    """The longest sequence that the model can read."""
    bos_token_id: str = "bos_token_id"

    def is_buffer(self, tensor: str) -> bool:
        """Whether a tensor of a file is one that the model computes itself."""
        return self.buffers is not None and re.search(rf"(?:{self.buffers})$", tensor) is not None


_WITH_POST_NORMS: Final = Family(attn_out="post_attention_layernorm", mlp_out="post_feedforward_layernorm")
"""Where a norm stands between a part and the residual stream, what is added is what the norm gives."""

FAMILIES: Final[dict[str, Family]] = {
    "gemma": Family(),
    "gemma2": replace(_WITH_POST_NORMS, attention="eager"),
    "gemma3_text": _WITH_POST_NORMS,
    "gpt2": Family(
        layers="h",
        final_norm="ln_f",
        attn_out="attn",
        buffers=r"\.attn\.(masked_)?bias",
        d_model="n_embd",
        num_layers="n_layer",
        max_positions="n_positions",
    ),
    "gpt_neo": Family(
        attention="eager",
        layers="h",
        layers_give_tuples=True,
        final_norm="ln_f",
        attn_out="attn",
        buffers=r"\.attn\.attention\.(masked_)?bias",
        num_layers="num_layers",
    ),
    "gpt_neox": Family(
        final_norm="final_layer_norm",
        attn_out="attention",
        buffers=r"\.attention\.((masked_)?bias|rotary_emb\.inv_freq)",
    ),
    "granite": Family(attn_out=None, mlp_out=None),  # a layer multiplies both before it adds them
    "llama": Family(),
    "mistral": Family(),
    "mixtral": Family(),
    "olmo": Family(),
    "olmo2": _WITH_POST_NORMS,
    "olmo3": _WITH_POST_NORMS,
    "phi": Family(final_norm="final_layernorm"),
    "phi3": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "smollm3": Family(),
    "stablelm": Family(),
}
"""By model type."""
