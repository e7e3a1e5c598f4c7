"""Tiny checkpoints laid out like the hub's: families of models, and tokenizers of several kinds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCAB_SIZE = 600
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
PAD, EOS, BOS = 0, 1, 2
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": BOS,
}
TEXT = [
    "In 2023, 12345 shards held 3.14 rows; 100 of 1999 were 0.5 or 42.",
    "def f(x):\n    return x + 1  # don't, we'll\n\n\nfor shard in shards:\n\twrite(shard)\n",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u4f60\u597d na\u00efve \U0001f600 caf\u00e9",
]

GPT4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def byte_level(*before: pre_tokenizers.PreTokenizer, use_regex: bool = True) -> Tokenizer:
    """A byte-level BPE, as GPT-2's, with splits before."""
    tokenizer = Tokenizer(models.BPE())
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, own])
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, pre_tokenizers.ByteLevel.alphabet())


def spaces_as_blocks(*, prepend: bool) -> Tokenizer:
    """A BPE over text whose spaces are U+2581, as Llama's and Gemma's were converted from SentencePiece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    parts: list[normalizers.Normalizer] = [normalizers.Replace(" ", "\u2581")]
    tokenizer.normalizer = normalizers.Sequence([*([normalizers.Prepend("\u2581")] if prepend else []), *parts])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    return trained(tokenizer, [], more=bytes_)


def unigram() -> Tokenizer:
    """SentencePiece's other kind, as T5's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    alphabet = sorted(set("".join(TEXT)) | set("abcdefghijklmnopqrstuvwxyz"))
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return with_bos(tokenizer)


def trained(tokenizer: Tokenizer, alphabet: list[str], *, more: list[str] | None = None) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[*SPECIAL, *(more or [])],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    if more:  # bytes are tokens of the vocabulary there, and no special ones
        data = json.loads(tokenizer.to_str())
        data["added_tokens"] = data["added_tokens"][: len(SPECIAL)]
        tokenizer = Tokenizer.from_str(json.dumps(data))
    return with_bos(tokenizer)


def with_bos(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: byte_level(),
    "smollm2": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "olmo2": lambda: byte_level(pre_tokenizers.Split(Regex(GPT4_SPLIT), behavior="isolated"), use_regex=False),
    "llama2": lambda: spaces_as_blocks(prepend=True),
    "gemma": lambda: spaces_as_blocks(prepend=False),
    "unigram": unigram,
}
"""By what they are like: what tokenizer.json holds."""


def save_tokenizer(folder: Path, tokenizer: Tokenizer, tokenizer_class: str) -> None:
    """tokenizer.json, and the settings that name a class of transformers, which may stand for another tokenizer."""
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class, **names}))


def save_model(folder: Path, family: str, **changes: Any) -> Path:  # noqa: ANN401 - settings of any type
    """A random model of a family of transformers, such as "Llama"."""
    name = f"{family}TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, name)(**(SIZES | changes))
    torch.manual_seed(0)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
    return folder


def edit(folder: Path, file: str, **changes: Any) -> Path:  # noqa: ANN401 - whatever JSON can hold
    """Changes entries of a JSON file; `...` removes one."""
    path = folder / file
    data = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))
    return folder


def copied(source: Path, target: Path) -> Path:
    return shutil.copytree(source, target)


def in_shards(folder: Path) -> Path:
    """The same weights in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
