"""The embedded profile made small: seconds for the whole pipeline, on a text and a language model of a test."""

from pathlib import Path
from typing import Any


def write_text(folder: Path) -> None:
    """text.jsonl: 400 documents of 39 words."""
    words = ["the", "store", "keeps", "shards", "of", "rows", "and", "the", "reader", "maps", "them"]
    documents = (" ".join(words[(i * j) % len(words)] for j in range(1, 40)) for i in range(400))
    (folder / "text.jsonl").write_text(
        "".join(f'{{"text": "{number} {text}"}}\n' for number, text in enumerate(documents))
    )


def shrink(params: dict[str, Any]) -> None:
    """Changes the embedded profile in the parsed params.yaml to text.jsonl and the checkpoint ./tiny."""
    params["grid"] = {}  # one seed
    profile = params["profiles"]["embedded"]
    profile["language_model"]["name"] = "./tiny"
    profile["harvest"] |= {
        "text": {"kind": "files", "paths": ["text.jsonl"], "column": "text"},
        "hooks": ["blocks.1.hook_resid_post"],
        "num_rows": 1500,
        "num_held_out_sequences": 8,
        "held_out_fraction": 0.1,
        "context_length": 16,
        "forward_batch_sequences": 4,
        "sequences_per_chunk": 4,
        "chunks_per_shard": 8,
    }
    profile["train"] |= {
        "hook": "blocks.1.hook_resid_post",
        "d_sae": 48,
        "l1": 1.5,
        "batch_rows": 64,
        "pool_bytes": 100000,
    }
    profile["evaluate"]["autointerp"] |= {
        "num_latents": 6,
        "num_sequences": 8,
        "batch_sequences": 4,
        "dead_latent_threshold": 5,
        "buffer": 2,
        "n_top_ex_for_generation": 4,
    }
    profile["evaluate"]["core"] |= {
        "num_reconstruction_sequences": 8,
        "num_sparsity_sequences": 8,
        "batch_sequences": 4,
    }
    # Minutes of probes on texts that a random model cannot tell apart; they have tests of their own.
    profile["evaluate"] |= dict.fromkeys(("sparse_probing", "tpp", "sparse_probing_sae_probes"))
    profile["evaluate"]["latents"]["num_held_out_sequences"] = 8
    full = params["profiles"]["embedded-full"]["evaluate"]["meta_structure"]
    profile["evaluate"]["meta_structure"] = {**full, "train_steps": 20}
