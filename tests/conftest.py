"""Fixtures for all tests: a miniature language model laid out like a hub checkpoint, and threads that stay few."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)  # two test processes share the cores

TINY_TEXT = [
    "def encode(rows):\n    return codec.encode(rows)\n",
    "A sparse autoencoder learns directions that fire on few inputs.\n",
    "for shard in shards:\n    write(shard)\n",
]


@pytest.fixture(scope="session", autouse=True)
def signals_are_heard() -> None:
    """Signals as in a terminal. A shell ignores SIGINT in what it runs in the background, and nohup SIGHUP; tests that
    send one to themselves or to a program that they start would wait for nothing."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def memory_of_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests remember what they find out about checkpoints among themselves, not in the user's cache folder."""
    path = tmp_path_factory.mktemp("memory") / "checkpoints.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("language_model.memory.memory_file", lambda: path)
        yield


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma-2: d_model 32, 3 layers, vocabulary of at most 512, <pad>=0 <eos>=1 <bos>=2 <unk>=3."""
    folder = tmp_path_factory.mktemp("tiny-gemma-2")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TINY_TEXT,
        trainers.BpeTrainer(
            vocab_size=512,
            special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        model_max_length=512,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        max_position_embeddings=512,
        sliding_window=256,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        attn_implementation="eager",
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the one test that takes minutes, so that two processes end at about the same time."""
    items.sort(key=lambda item: item.path.name != "test_dvc.py")
