"""BOS, EOS and padding: every file that names them, against every other, and against the vocabulary."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from language_model.checkpoint import UnusableModel
from language_model.load import identify
from language_model.special_tokens import check_bos, special_tokens
from tests.language_model.checkpoints import VOCAB_SIZE, byte_level, copied, edit, save_model, save_tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """<pad> is 0, <eos> 1, <bos> 2, in config.json, generation_config.json and the tokenizer's files."""
    folder = save_model(tmp_path_factory.mktemp("llama"), "Llama")
    save_tokenizer(folder, byte_level(), "GPT2Tokenizer")
    return folder


@pytest.fixture
def folder(llama: Path, tmp_path: Path) -> Path:
    return copied(llama, tmp_path / "copy")


def test_a_checkpoint_whose_files_agree_has_one_bos_and_three_tokens_to_ignore(folder: Path) -> None:
    found = special_tokens(folder)
    assert (found.bos, found.ignored) == (2, {0, 1, 2})
    assert identify(folder, str(folder), None).bos_token_id == 2


@pytest.mark.parametrize("bos", [[2], [2, 1], "2", True, 2.0])
def test_config_json_must_name_one_bos_or_none(folder: Path, bos: object) -> None:
    edit(folder, "config.json", bos_token_id=bos)
    with pytest.raises(UnusableModel, match=r"expected one number as bos_token_id in .*config.json, got .*, or null"):
        identify(folder, str(folder), None)


@pytest.mark.parametrize("bos", [None, ...])
def test_a_model_without_bos_is_one_where_no_window_is_to_begin_with_it(folder: Path, bos: object) -> None:
    check_bos(folder)
    edit(folder, "config.json", bos_token_id=bos)
    found = special_tokens(folder)
    assert found.bos is None
    assert identify(folder, str(folder), None).bos_token_id is None
    with pytest.raises(UnusableModel, match=r"expected one number as bos_token_id in .*, got none: every wi") as caught:
        check_bos(folder)
    assert "tokenizer_config.json names 2 ('<bos>')" in str(caught.value)
    assert "if it was trained without BOS, set harvest.first_token to text" in str(caught.value)


@pytest.mark.parametrize("name", ["bos", "eos", "pad"])
@pytest.mark.parametrize("token", [-1, VOCAB_SIZE, 99999])
def test_an_id_outside_the_vocabulary_is_refused(folder: Path, name: str, token: int) -> None:
    edit(folder, "config.json", **{f"{name}_token_id": token})
    match = rf"expected a {name} token within the model's vocabulary of {VOCAB_SIZE}, got {token} in .*config.json"
    with pytest.raises(UnusableModel, match=match):
        identify(folder, str(folder), None)


@pytest.mark.parametrize("name", ["bos", "eos", "pad"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_another_id_than_the_tokenizers_names_both_places_and_both_ids(folder: Path, file: str, name: str) -> None:
    right = {"bos": 2, "eos": 1, "pad": 0}[name]
    edit(folder, file, **{f"{name}_token_id": 3})
    with pytest.raises(UnusableModel) as caught:
        identify(folder, str(folder), None)
    message = str(caught.value)
    assert message.startswith(f"expected one {name} token, got ")
    assert f"3 ('<unk>') in {folder / file}" in message.replace(" and ", " in ") or "3 ('<unk>')" in message
    assert f"{right} ('<{name}>')" in message
    assert str(folder / file) in message


def test_the_tokenizers_own_files_must_agree_too(folder: Path) -> None:
    edit(folder, "special_tokens_map.json", eos_token={"content": "<unk>", "lstrip": False})
    with pytest.raises(UnusableModel, match=r"expected one eos token, got 1 \('<eos>'\) in .* and 3 \('<unk>'\) in"):
        identify(folder, str(folder), None)


def test_a_special_token_that_the_vocabulary_lacks_is_named(folder: Path) -> None:
    edit(folder, "tokenizer_config.json", bos_token="<s>")
    with pytest.raises(UnusableModel, match=r"the bos_token '<s>' of .*tokenizer_config.json in the vocabulary of"):
        identify(folder, str(folder), None)


def test_a_tokenizer_that_begins_texts_with_another_token_contradicts_config_json(folder: Path) -> None:
    """The distilled Qwen models of DeepSeek are made so: their config.json names a BOS of the older tokenizer."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(UnusableModel, match=r"2 \('<bos>'\) in .*, but the post-processor of .* with 3 \('<unk>'\)"):
        identify(folder, str(folder), None)


def test_files_that_name_no_token_contradict_nobody(folder: Path) -> None:
    """Qwen's tokenizer has no BOS of its own, and Llama's no padding."""
    edit(folder, "tokenizer_config.json", bos_token=None, pad_token=None, eos_token=...)
    edit(folder, "config.json", pad_token_id=None)
    (folder / "generation_config.json").unlink()
    found = special_tokens(folder)
    assert (found.bos, found.ignored) == (2, {1, 2})


def test_a_chat_model_may_end_at_several_tokens_if_the_tokenizers_is_among_them(folder: Path) -> None:
    edit(folder, "generation_config.json", eos_token_id=[3, 1])
    assert special_tokens(folder).ignored == {0, 1, 2, 3}
    edit(folder, "generation_config.json", eos_token_id=[3, 4])
    with pytest.raises(UnusableModel, match="expected one eos token"):
        special_tokens(folder)
    edit(folder, "generation_config.json", eos_token_id=[])
    with pytest.raises(UnusableModel, match=r"as eos_token_id in .*generation_config.json, got \[\]"):
        special_tokens(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder: Path) -> None:
    edit(folder, "config.json", vocab_size=300)
    with pytest.raises(
        UnusableModel, match=r"ids below the vocab_size of 300 in .*, but .*tokenizer.json gives ids up"
    ):
        special_tokens(folder)


def test_special_tokens_behind_the_vocabulary_are_allowed_because_no_text_gives_them(folder: Path) -> None:
    """Gemma 3's text models have a tokenizer with one token more, for images."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    size = Tokenizer.from_file(str(path)).get_vocab_size()
    edit(folder, "config.json", vocab_size=size)
    image = {"id": size, "content": "<image>", "special": True} | dict.fromkeys(
        ("single_word", "lstrip", "rstrip", "normalized"), False
    )
    data["added_tokens"].append(image)
    path.write_text(json.dumps(data))
    assert special_tokens(folder).bos == 2
    image["special"] = False
    path.write_text(json.dumps(data))
    with pytest.raises(UnusableModel, match=f"gives ids up to {size}"):
        special_tokens(folder)
