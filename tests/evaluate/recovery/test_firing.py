"""When latents fire against when features are on: counts and shares that can be checked by hand."""

import numpy as np
import pytest
import torch
from sae_lens.synthetic import compute_classification_metrics

from evaluate.recovery.firing import Counts, absorbed, children_of, count, detection, mean_of, thirds

T, F = True, False
ON = np.array([  # feature 1 is a child of feature 0; feature 2 stands alone
    [T, F, F],
    [T, F, F],
    [T, T, F],
    [T, T, T],
    [F, F, T],
])  # fmt: skip
FIRED = np.array([
    [T, F, F],
    [T, F, F],
    [F, T, F],  # the parent's latent is silent where the child is on
    [T, T, F],
    [T, F, T],
])  # fmt: skip
CHILDREN = children_of(np.array([-1, 0, -1]))


def test_children_are_found_by_parent() -> None:
    children = children_of(np.array([-1, 0, 0, 1, -1]))
    assert {parent: numbers.tolist() for parent, numbers in children.items()} == {0: [1, 2], 1: [3]}


def test_counts_and_what_follows_from_them() -> None:
    counts = count(FIRED, ON, CHILDREN)
    assert counts.both.tolist() == [3, 2, 1]
    assert counts.latent.tolist() == [4, 2, 1]
    assert counts.feature.tolist() == [4, 2, 2]
    assert (counts.alone.tolist(), counts.alone_fired.tolist()) == ([2], [2])
    assert (counts.with_child.tolist(), counts.with_child_fired.tolist()) == ([2], [1])
    detected = detection(counts)
    assert detected.precision.tolist() == [0.75, 1.0, 1.0]
    assert detected.recall.tolist() == [0.75, 1.0, 0.5]
    assert detected.f1 == pytest.approx([0.75, 1.0, 2 / 3])
    assert absorbed(counts, lost_recall=0.2).tolist() == [1.0]  # recall falls from 1 to 1/2
    assert absorbed(counts, lost_recall=0.6).tolist() == [0.0]


def test_a_latent_that_never_fires_detects_nothing_and_has_no_recall_to_lose() -> None:
    counts = count(np.zeros_like(ON), ON, CHILDREN)
    detected = detection(counts)
    assert not detected.precision.any()
    assert not detected.f1.any()
    assert absorbed(counts, lost_recall=0.2).tolist() == [0.0]


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    flat = count(FIRED[:2], ON[:2], CHILDREN).flat() + count(FIRED[2:], ON[2:], CHILDREN).flat()
    whole = Counts.unflat(flat, num_features=3, num_parents=1)
    assert whole.flat().tolist() == count(FIRED, ON, CHILDREN).flat().tolist()
    assert whole.with_child_fired.tolist() == [1]
    several = Counts.unflat(np.stack([flat, 2 * flat]), num_features=3, num_parents=1)
    assert detection(several).recall[1].tolist() == detection(whole).recall.tolist()
    assert mean_of(several.feature, [0, 2]).tolist() == [3.0, 6.0]


def test_without_a_hierarchy_there_are_no_parents() -> None:
    counts = count(FIRED, ON, children_of(np.full(3, -1)))
    assert counts.alone.shape == (0,)
    assert counts.both.tolist() == [3, 2, 1]


def test_thirds_go_by_frequency() -> None:
    groups = thirds(np.array([0.5, 0.1, 0.3, 0.2, 0.4, 0.6, 0.7]))
    assert {name: numbers.tolist() for name, numbers in groups.items()} == {
        "rare": [1, 3, 2], "middle": [4, 0], "frequent": [5, 6],
    }  # fmt: skip


def test_where_latents_and_features_are_paired_it_is_the_library_s_classification() -> None:
    generator = torch.Generator().manual_seed(1)
    latents = torch.rand(500, 6, generator=generator) * (torch.rand(500, 6, generator=generator) < 0.4)
    features = torch.rand(500, 6, generator=generator) * (torch.rand(500, 6, generator=generator) < 0.3)
    theirs = compute_classification_metrics(latents, features, torch.eye(6), torch.eye(6))
    ours = detection(count((latents > 0).numpy(), (features > 0).numpy(), {}))
    assert ours.precision.mean() == pytest.approx(theirs.precision)
    assert ours.recall.mean() == pytest.approx(theirs.recall)
    assert ours.f1.mean() == pytest.approx(theirs.f1_score)
