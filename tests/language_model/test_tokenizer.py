"""Tokens are those of tokenizer.json, whatever class of transformers a checkpoint names."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from harvest.tokens import pack
from language_model.checkpoint import UnusableModel
from language_model.load import identify
from language_model.tokenizer import PROBE, load_tokenizer, transformers_tokenizer
from store.cache.split import is_held_out
from tests.harvest.texts import text_of
from tests.language_model.checkpoints import BOS, TOKENIZERS, byte_level, save_model, save_tokenizer

FAMILIES = ("Llama", "Qwen2", "Gemma2", "Olmo2", "Granite")
CLASSES = ("GPT2Tokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer", "GemmaTokenizer", "PreTrainedTokenizerFast")
DOCUMENTS = [f"{number} {PROBE}\n" for number in range(8)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save_model(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_window_is_tokenizer_jsons_for_every_class_of_tokenizers(models: dict[str, Path], family: str) -> None:
    folder = models[family]
    for make in TOKENIZERS.values():
        for tokenizer_class in CLASSES:
            save_tokenizer(folder, make(), tokenizer_class)
            identity = identify(folder, str(folder), None)
            windows = pack(
                text_of(DOCUMENTS),
                load_tokenizer(folder),
                bos_token_id=identity.bos_token_id,
                vocab_size=identity.vocab_size,
                context_length=16,
                num_sequences=20,
                num_held_out_sequences=4,
                held_out_fraction=0.4,
            )
            plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
            plain.encode_special_tokens = True
            stream = [
                id_
                for text in DOCUMENTS
                if not is_held_out(text, fraction=0.4)
                for id_ in plain.encode(text, add_special_tokens=False).ids
            ]
            assert (windows.training[:, 0] == BOS).all()
            assert windows.training[:, 1:].ravel().tolist() == stream[: 20 * 15]


def test_transformers_own_tokenizers_differ_in_most_of_these_combinations(models: dict[str, Path]) -> None:
    """Otherwise the test above would show nothing."""
    folder, differ = models["Llama"], 0
    for make in TOKENIZERS.values():
        for tokenizer_class in CLASSES:
            save_tokenizer(folder, make(), tokenizer_class)
            expected = load_tokenizer(folder).encode(PROBE, add_special_tokens=False).ids
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            differ += theirs(PROBE, add_special_tokens=False, split_special_tokens=True)["input_ids"] != expected
    assert differ >= 12


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokenizer_for_libraries_is_made_from_tokenizer_json_too(models: dict[str, Path], kind: str) -> None:
    folder = models["Llama"]
    save_tokenizer(folder, TOKENIZERS[kind](), "LlamaTokenizer")
    tokenizer = transformers_tokenizer(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1, 0)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs, expected = (json.loads(made.to_str()) for made in (tokenizer.backend_tokenizer, plain))
    for part in ("model", "normalizer", "pre_tokenizer"):
        assert theirs[part] == expected[part]


def test_a_tokenizer_that_draws_lots_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, byte_level(), "GPT2Tokenizer")
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["dropout"] = 0.1
    path.write_text(json.dumps(data))
    with pytest.raises(UnusableModel, match=r"the same tokens each time, but .*tokenizer.json has a dropout of 0.1"):
        load_tokenizer(tmp_path)
    path.write_text("{}")
    with pytest.raises(UnusableModel, match=r"expected a tokenizer in .*tokenizer.json, found something else"):
        load_tokenizer(tmp_path)


def test_settings_of_truncation_and_padding_in_tokenizer_json_cut_nothing(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.encode_special_tokens = True  # "<bos>" in the text is text
    whole = tokenizer.encode(PROBE, add_special_tokens=False).ids
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=6)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert np.array_equal(load_tokenizer(tmp_path).encode(PROBE, add_special_tokens=False).ids, whole)
    assert len(whole) > 6
