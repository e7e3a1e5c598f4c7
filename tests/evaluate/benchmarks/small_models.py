"""Language models that know what a test says: Gemma-2 checkpoints whose numbers are set by hand, not trained.

A token has a vector. Layer 0 passes it on as it is; layer 1 adds the mean over all tokens so far; layer 2 does nothing.
The head's row of a token is its vector again, so the next token is the one that fits the mean best.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

D_MODEL = 64
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")


def write_model(
    folder: Path, vectors: Mapping[str, Sequence[float]], *, fillers: Sequence[str] = (), pattern: str = r"\w+|\s|."
) -> Path:
    """A checkpoint whose tokens are the keys of `vectors` (each at most 62 numbers) and `fillers`, which mean nothing.

    `pattern`: a regular expression of what is one token, if the vocabulary has it.
    """
    folder.mkdir(parents=True)
    words = [*SPECIAL, *vectors, *(word for word in fillers if word not in vectors)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>",
        model_max_length=2048,
    ).save_pretrained(folder)  # fmt: skip
    config = Gemma2Config(
        vocab_size=len(words), hidden_size=D_MODEL, intermediate_size=32, num_hidden_layers=3, num_attention_heads=1,
        num_key_value_heads=1, head_dim=D_MODEL, query_pre_attn_scalar=D_MODEL, max_position_embeddings=2048,
        sliding_window=2048, pad_token_id=0, eos_token_id=1, bos_token_id=2, attn_implementation="eager",
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        attention = model.model.layers[1].self_attn
        attention.v_proj.weight.copy_(torch.eye(D_MODEL))
        attention.o_proj.weight.copy_(torch.eye(D_MODEL))
        embeddings = model.model.embed_tokens.weight
        embeddings[:, D_MODEL - 1] = 0.05  # no vector is zero, or norms would divide by it
        for word, vector in vectors.items():
            embeddings[words.index(word), : len(vector)] = torch.tensor(vector)
    model.save_pretrained(folder)
    return folder
