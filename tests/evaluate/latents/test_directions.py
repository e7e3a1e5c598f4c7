"""What decoder directions say: tokens that they raise, latents that are near."""

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate.latents.logit_effects import extremes, logit_effects
from evaluate.latents.neighbours import all_matches, matching_latents, nearest_latents
from evaluate.latents.spelling import spelled
from language_model.load import load_model


def test_effects_are_those_of_the_direction_alone_through_norm_and_unembedding(tiny_model_folder: Path) -> None:
    model = load_model(tiny_model_folder, dtype=torch.float32, device="cpu")
    W_dec = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    found = logit_effects(model, W_dec)
    # Gemma's norm: x / sqrt(mean(x^2) + eps) * (1 + weight); the length of a decoder row makes no difference.
    unit = W_dec / W_dec.norm(dim=1, keepdim=True)
    normed = unit / (unit.square().mean(dim=1, keepdim=True) + 1e-6).sqrt() * (1 + model.model.norm.weight)
    logits = (normed @ model.get_output_embeddings().weight.T).detach().numpy()
    order = np.argsort(-logits, axis=1, kind="stable")
    assert found.raised.tolist() == order[:, :10].tolist()
    assert found.lowered.tolist() == np.argsort(logits, axis=1, kind="stable")[:, :10].tolist()
    assert np.allclose(found.raised_by, np.take_along_axis(logits, order[:, :10], axis=1), rtol=1e-4)
    assert np.array_equal(logit_effects(model, 7 * W_dec).raised, found.raised)


def test_equal_effects_are_in_the_order_of_their_tokens_however_the_vocabulary_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = torch.tensor([[1.0], [3.0], [3.0], [-2.0], [1.0], [3.0], [-2.0], [0.0]])
    for block in (4, 2**20):
        monkeypatch.setattr("evaluate.latents.logit_effects._BLOCK_LOGITS", block)
        found = extremes(torch.tensor([[1.0], [-1.0]]), head, count=4)
        assert found.raised.tolist() == [[1, 2, 5, 0], [3, 6, 7, 0]]
        assert found.raised_by.tolist() == [[3, 3, 3, 1], [2, 2, 0, -1]]
        assert found.lowered.tolist() == [[3, 6, 7, 0], [1, 2, 5, 0]]
        assert found.lowered_by.tolist() == [[-2, -2, 0, 1], [-3, -3, -3, -1]]


def test_the_nearest_latents_are_others_and_the_first_of_equal_ones() -> None:
    W_dec = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    numbers, cosines = nearest_latents(W_dec, count=2)
    assert numbers.tolist() == [[2, 3], [3, 0], [0, 3], [0, 1], [1, 3]]
    assert np.allclose(cosines[0], [1.0, 0.5**0.5])
    assert np.allclose(cosines[4], [0.0, -(0.5**0.5)])
    assert nearest_latents(W_dec, count=9)[0].shape == (5, 4)
    assert nearest_latents(W_dec[:1])[0].shape == (1, 0)


def test_matches_go_both_ways_and_each_variant_has_one_in_every_other() -> None:
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    second = torch.tensor([[0.0, 5.0], [1.0, 0.1], [1.0, 0.0], [1.0, 0.0]])
    (there, cosines), (back, back_cosines) = matching_latents(first, second)
    assert there.tolist() == [2, 0]
    assert cosines.tolist() == [1.0, 1.0]
    assert back.tolist() == [1, 0, 0, 0]
    assert np.allclose(back_cosines, [1.0, 1 / 1.01**0.5, 1.0, 1.0])
    matches = all_matches({"a": first, "b": second, "other width": torch.eye(3)})
    assert {name: list(others) for name, others in matches.items()} == {"a": ["b"], "b": ["a"], "other width": []}


def test_tokens_are_spelled_with_their_spaces_and_parts_of_characters_by_name(tiny_model_folder: Path) -> None:
    from language_model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tiny_model_folder)
    ids = tokenizer.encode(" return \u00e9", add_special_tokens=False).ids
    texts = spelled(tiny_model_folder, [2, *ids, 10**6])
    assert texts[2] == "<bos>"
    assert texts[10**6] == "[1000000]"
    shown = "".join(texts[id_] for id_ in ids)
    assert shown.startswith(" return")
    assert "\ufffd" not in shown
