"""Trains the embedded language model: a small Gemma-2 on Python's standard library.

    python -m language_model.train_embedded [FOLDER]

writes a folder laid out like a hub checkpoint (config.json, model.safetensors in bfloat16, tokenizer files), with the
training curve and a model card. It takes about half an hour on two cores, and is run by hand, never by the pipeline:
its result is committed.
"""

import argparse
import json
import math
import platform
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from language_model.load import EMBEDDED_FOLDER
from language_model.standard_library import corpus_digest, documents
from store.cache.split import is_held_out

SEED = 0
VOCAB_SIZE = 4096
CONTEXT_LENGTH = 128
BATCH_SEQUENCES = 32
NUM_EPOCHS = 3.0
PEAK_LR = 2e-3
HELD_OUT_FRACTION = 0.05
SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>"]
PAD, EOS, BOS = 0, 1, 2


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level byte-pair tokenizer of `VOCAB_SIZE` entries; like Gemma's, it puts <bos> in front of each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        model_max_length=4096,
    )


def pack(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> NDArray[np.int64]:
    """Windows of <bos> and CONTEXT_LENGTH - 1 tokens, cut from the texts joined end to end: (sequences, context)."""
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    stream = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in encoded])
    per_window = CONTEXT_LENGTH - 1
    windows = stream[: len(stream) // per_window * per_window].reshape(-1, per_window)
    return np.concatenate([np.full((len(windows), 1), BOS, dtype=np.int64), windows], axis=1)


def unigram_entropy(train: NDArray[np.int64], held_out: NDArray[np.int64]) -> float:
    """Cross-entropy, in nats per token, of the held-out tokens under the training tokens' frequencies (add-one)."""
    counts = Counter(train[:, 1:].ravel().tolist())
    total = train[:, 1:].size + VOCAB_SIZE
    return -float(np.mean([math.log((counts[token] + 1) / total) for token in held_out[:, 1:].ravel().tolist()]))


@torch.no_grad()
def cross_entropy(model: Gemma2ForCausalLM, sequences: NDArray[np.int64]) -> float:
    """Mean next-token cross-entropy in nats over `sequences`."""
    losses = []
    for start in range(0, len(sequences) // BATCH_SEQUENCES * BATCH_SEQUENCES, BATCH_SEQUENCES):
        batch = torch.from_numpy(sequences[start : start + BATCH_SEQUENCES])
        losses.append(float(model(input_ids=batch, labels=batch).loss))
    return sum(losses) / len(losses)


def model_config() -> Gemma2Config:
    return Gemma2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=48,
        query_pre_attn_scalar=48,
        max_position_embeddings=4096,
        sliding_window=4096,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
        attn_implementation="eager",
    )


def learning_rate(step: int, num_steps: int) -> float:
    """Linear warm-up over 3 % of the steps, then a cosine to a twentieth of the peak."""
    warm_up = max(1, int(0.03 * num_steps))
    if step < warm_up:
        return PEAK_LR * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, num_steps - warm_up)
    return PEAK_LR * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    model: Gemma2ForCausalLM, train_set: NDArray[np.int64], held_out: NDArray[np.int64]
) -> list[dict[str, float]]:
    """AdamW over NUM_EPOCHS; returns the curve, one record every 100 steps, held-out loss included."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.1)
    steps_per_epoch = len(train_set) // BATCH_SEQUENCES
    num_steps = int(NUM_EPOCHS * steps_per_epoch)
    rng = np.random.default_rng(SEED)
    curve: list[dict[str, float]] = []
    recent: list[float] = []
    order = rng.permutation(len(train_set))
    for step in (progress := tqdm(range(num_steps), unit="step")):
        in_epoch = step % steps_per_epoch
        if in_epoch == 0 and step > 0:
            order = rng.permutation(len(train_set))
        batch = torch.from_numpy(train_set[order[in_epoch * BATCH_SEQUENCES : (in_epoch + 1) * BATCH_SEQUENCES]])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps)
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(float(loss.detach()))
        if (step + 1) % 100 == 0 or step + 1 == num_steps:
            model.eval()
            record = {
                "step": step + 1,
                "tokens": (step + 1) * BATCH_SEQUENCES * (CONTEXT_LENGTH - 1),
                "train_cross_entropy": round(sum(recent) / len(recent), 4),
                "held_out_cross_entropy": round(cross_entropy(model, held_out[: 4 * BATCH_SEQUENCES]), 4),
            }
            model.train()
            curve.append(record)
            recent = []
            progress.set_postfix(train=record["train_cross_entropy"], held_out=record["held_out_cross_entropy"])
    return curve


def model_card(figures: dict[str, object], curve: list[dict[str, float]]) -> str:
    rows = "\n".join(
        f"| {r['step']} | {r['tokens']} | {r['train_cross_entropy']:.3f} | {r['held_out_cross_entropy']:.3f} |"
        for r in curve
        if r["step"] % 500 == 0 or r is curve[-1]
    )
    facts = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    return f"""# The embedded language model

A small language model of the Gemma-2 architecture (`Gemma2ForCausalLM`). It is small enough for git, so that the whole
pipeline runs with no account and no network. `language_model/train_embedded.py` trains it from scratch on the sources
of Python's standard library: code, docstrings and comments of the modules listed in
`language_model/standard_library.py`. Whole files are held out; a digest of a file's text decides which. The model knows
Python and some English, and nothing else. It is for trying interpretability tools, not for use as a language model.

| | |
|---|---|
{facts}

Cross-entropies are in nats per token. The training text is under Python's licence (PSF).

| step | tokens | training cross-entropy | held-out cross-entropy (first {4 * BATCH_SEQUENCES} windows) |
|---|---|---|---|
{rows}

The whole curve is in `training_curve.json`. To make the model again: `python -m language_model.train_embedded FOLDER`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded language model.")
    parser.add_argument("folder", type=Path, nargs="?", default=EMBEDDED_FOLDER)
    folder = parser.parse_args().folder
    started = time.monotonic()
    transformers.set_seed(SEED)
    corpus = [text for _, text in documents()]
    train_texts = [text for text in corpus if not is_held_out(text, fraction=HELD_OUT_FRACTION)]
    held_out_texts = [text for text in corpus if is_held_out(text, fraction=HELD_OUT_FRACTION)]
    tokenizer = train_tokenizer(train_texts)
    train_set, held_out = pack(tokenizer, train_texts), pack(tokenizer, held_out_texts)
    print(f"{train_set.size:,} training tokens, {held_out.size:,} held-out tokens", flush=True)

    model = Gemma2ForCausalLM(model_config())
    model.train()
    curve = train(model, train_set, held_out)

    model = model.to(torch.bfloat16)  # what is published is what is measured: the rounded weights, run in float32
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = model.to(torch.float32)
    model.eval()
    loss, unigram = cross_entropy(model, held_out), unigram_entropy(train_set, held_out)
    figures: dict[str, object] = {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "shape": "d_model 192, 4 layers, 4 heads of 48 (2 key-value), MLP 768, vocabulary 4096, tied embeddings",
        "training tokens": f"{curve[-1]['tokens']:,} ({NUM_EPOCHS:g} epochs of {train_set[:, 1:].size:,})",
        "held-out tokens": f"{held_out[:, 1:].size:,} in {len(held_out_texts)} files",
        "held-out cross-entropy": f"{loss:.3f}",
        "unigram cross-entropy": f"{unigram:.3f}",
        "ratio": f"{loss / unigram:.3f}",
        "seed": SEED,
        "Python": platform.python_version(),
        "text digest (SHA-256)": f"`{corpus_digest()}`",
        "torch, transformers": f"{torch.__version__.split('+')[0]}, {transformers.__version__}",
        "training time": f"{(time.monotonic() - started) / 60:.0f} minutes on {torch.get_num_threads()} CPU threads",
    }
    (folder / "training_curve.json").write_text("[\n" + ",\n".join(json.dumps(record) for record in curve) + "\n]\n")
    (folder / "README.md").write_text(model_card(figures, curve))
    print(f"held-out cross-entropy {loss:.3f}, unigram {unigram:.3f}, ratio {loss / unigram:.3f}")


if __name__ == "__main__":
    main()
