"""Variants trained together are those trained alone; they stop and continue without anybody noticing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sae_lens import SAE

from store.sae.artefact import load_sae, save_sae
from store.sae.weights import decode, encode, fold_scale
from tests.store.cache_fixture import make_spec
from train.config import VariantSettings
from train.group import VariantGroup, make_group
from train.metrics import COLUMNS, diverged

D, F, B, NUM_STEPS = 8, 12, 32, 200
SCALE = 0.5
KINDS: list[dict[str, Any]] = [
    {"kind": "relu"},
    {"kind": "topk", "k": 3},
    {"kind": "batchtopk", "k": 3},
    {"kind": "jumprelu", "l0": 0.1},
    {"kind": "matryoshka-batchtopk", "k": 3, "widths": [4, 8]},
    {"kind": "gated"},
]
EACH_KIND = pytest.mark.parametrize("kind", KINDS, ids=[kind["kind"] for kind in KINDS])
AUXK = {"kind": "auxk", "k": 4}
RESAMPLE = {"kind": "resample", "every_steps": 7}
Resolved = Callable[..., VariantSettings]


@pytest.fixture(scope="module")
def batches() -> list[NDArray[np.uint16]]:
    """200 batches: a mean plus sparse positive combinations of 10 directions, E||x||^2 of about 4 d."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(10, D, generator=generator)
    present = torch.rand(NUM_STEPS * B, 10, generator=generator) < 0.2
    rows = 3.0 * (present * torch.rand(NUM_STEPS * B, 10, generator=generator)) @ directions + 0.5
    bits = rows.to(torch.bfloat16).view(torch.uint16).numpy()
    return [np.ascontiguousarray(rows) for rows in np.split(bits, NUM_STEPS)]


def study(resolved: Resolved, kind: dict[str, Any], dead_latents: dict[str, Any]) -> list[VariantSettings]:
    """Eleven variants that differ in everything that may differ within a group."""
    ks = [{**kind, "k": k} if "k" in kind else kind for k in (3, 2, 4, 3, 3, 3, 3, 3, 3, 3)]
    ks.append({**kind, "l0": {"target_l0": 4.0}} if kind["kind"] == "jumprelu" else kind)
    differences: list[dict[str, Any]] = [
        {},
        {"lam": {"kind": "learned", "start": 1.0}, "lr": 5e-3, "seed": 1},
        {"lam": {"kind": "linear", "start": 0.1, "end": 10.0}, "l1": 0.2, "lr_warm_up_fraction": 0.3},
        {"lam": {"kind": "dual", "start": 0.1, "target": 0.1, "rate": 0.05}, "gradient_clip": 1.0, "adam_beta1": 0.5},
        {
            "lam": {"kind": "fixed", "value": 0.5},
            "penalty": {"kind": "max-cosine", "chunk_latents": 5, "every_steps": 3},
        },
        {"lam": {"kind": "learned", "start": 2.0, "parametrisation": "literal"}, "penalty_scale": "per_latent"},
        {"lam": {"kind": "piecewise", "points": [[0.2, 0.0], [0.8, 3.0]]}, "sparsity_warm_up_fraction": 0.5, "seed": 9},
        {"lam": {"kind": "hypergradient", "start": 1.0}, "gradient_clip": 2.0},
        {"lam": {"kind": "gradnorm", "start": 0.1}, "adam_beta1": 0.5, "penalty": {"kind": "max-cosine"}},
        {"lam": {"kind": "uncertainty", "start": 0.1}, "lambda_lr": 0.02},
        {"l1": {"target_l0": 4.0, "start": 0.05}, "seed": 3},
    ]
    shared = {"d_sae": F, "dead_latents": dead_latents, "dead_after_rows": 2 * B, "lr": 1e-2, "batch_rows": B}
    return [
        resolved(**{**shared, "architecture": k, **difference}) for k, difference in zip(ks, differences, strict=True)
    ]


def group_of(settings: list[VariantSettings]) -> VariantGroup:
    return make_group(
        settings, num_steps=NUM_STEPS, batch_rows=B, scale=SCALE, mean=[0.5] * D, device=torch.device("cpu")
    )


def weights_of(group: VariantGroup) -> list[dict[str, torch.Tensor]]:
    return [sae.tensors() for sae in group.trained_weights()]


@EACH_KIND
def test_a_group_trains_each_variant_as_it_would_be_trained_alone_over_200_steps(
    kind: dict[str, Any], resolved: Resolved, batches: list[NDArray[np.uint16]]
) -> None:
    settings = study(resolved, kind, AUXK if KINDS.index(kind) % 2 else RESAMPLE)
    together, alone = group_of(settings), [group_of([variant]) for variant in settings]
    for number, bits in enumerate(batches):
        record = together.step(bits, log=number % 50 == 49)
        own = [group.step(bits, log=number % 50 == 49) for group in alone]
        if record is not None:
            singles = torch.cat([record for record in own if record is not None])
            torch.testing.assert_close(record, singles, rtol=2e-3, atol=1e-4, equal_nan=True)
    for mine, single in zip(weights_of(together), alone, strict=True):
        for name, tensor in weights_of(single)[0].items():
            torch.testing.assert_close(mine[name], tensor, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("dead_latents", [AUXK, RESAMPLE], ids=["auxk", "resample"])
@EACH_KIND
def test_a_restored_group_goes_on_to_the_same_bits(
    kind: dict[str, Any], dead_latents: dict[str, Any], resolved: Resolved, batches: list[NDArray[np.uint16]]
) -> None:
    settings = study(resolved, kind, dead_latents)
    whole, first, second = (group_of(settings) for _ in range(3))
    for bits in batches[:40]:
        whole.step(bits)
    for bits in batches[:23]:
        first.step(bits)
    second.restore({name: tensor.clone() for name, tensor in first.state().items()}, num_steps_done=23)
    for bits in batches[23:40]:
        second.step(bits)
    for name, tensor in whole.state().items():
        assert torch.equal(second.state()[name].nan_to_num(-1.0), tensor.nan_to_num(-1.0)), name


@EACH_KIND
def test_a_variant_that_diverges_stops_alone_and_the_others_keep_every_bit(
    kind: dict[str, Any], resolved: Resolved, batches: list[NDArray[np.uint16]]
) -> None:
    sound = study(resolved, kind, AUXK)
    broken = [*sound]
    broken[2] = sound[2].model_copy(update={"lr": 1e25})
    group, untouched = group_of(broken), group_of(sound)
    for number, bits in enumerate(batches[:30]):
        record = group.step(bits, log=True)
        untouched.step(bits)
        assert record is not None
        for index in diverged(record, group.frozen):
            assert index == 2
            group.freeze(index)
        if number == 28:
            assert group.frozen == [False, False, True, *[False] * 8]
            assert bool(record[2].isnan().all())
    assert group.not_finite() == []
    assert all(bool((tensor == 0).all()) for tensor in weights_of(group)[2].values())
    for index, (got, expected) in enumerate(zip(weights_of(group), weights_of(untouched), strict=True)):
        if index != 2:
            assert all(torch.equal(got[name], tensor) for name, tensor in expected.items()), index


def test_weights_that_are_not_finite_are_found_before_they_are_saved(
    resolved: Resolved, batches: list[NDArray[np.uint16]]
) -> None:
    group = group_of([resolved(d_sae=F), resolved(d_sae=F, lr=1e38)])
    group.step(batches[0])
    group.step(batches[1])
    assert group.not_finite() == [1]


@EACH_KIND
def test_what_is_saved_works_on_raw_rows_as_it_did_in_training_here_and_in_saelens(
    kind: dict[str, Any], resolved: Resolved, batches: list[NDArray[np.uint16]], tmp_path: Path
) -> None:
    group = group_of(
        [resolved(architecture=kind, d_sae=F, lr=1e-2, decoder_norm=norm, batch_rows=B) for norm in ["unit"]]
    )
    for bits in batches:
        group.step(bits)
    (trained,) = group.trained_weights()
    fields = {
        "name": "toy", "key": "k", "architecture": kind["kind"], "hook": "blocks.1.hook_resid_post",
        "model": make_spec().model, "cache_digest": "c", "context_length": 9, "scale": SCALE, "seed": 0, "num_steps": 1,
        "num_training_rows": 1, "train_version": 1, "variant": {}, "train": {}, "final": {},
    }  # fmt: skip
    save_sae(tmp_path / "toy", fold_scale(trained, SCALE), fields, [])
    loaded, card = load_sae(tmp_path / "toy")
    x = torch.from_numpy(batches[-1].copy()).view(torch.bfloat16).to(torch.float32)
    latents = encode(loaded, x)
    torch.testing.assert_close(latents, encode(trained, x * SCALE) / SCALE, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decode(loaded, latents), decode(trained, latents * SCALE) / SCALE, rtol=1e-4, atol=1e-5)
    theirs = SAE.load_from_disk(tmp_path / "toy")
    with torch.no_grad():
        assert torch.equal(theirs.encode(x), latents)
        assert torch.equal(theirs.decode(latents), decode(loaded, latents))
    assert (card.architecture, theirs.cfg.metadata.training_architecture) == (kind["kind"], kind["kind"])
    # What is saved is what was trained: the record of one more step on these rows is of the weights before its update.
    # Kinds that select from a batch are saved with a running threshold, which keeps about as many latents.
    record = group.step(batches[-1], log=True)
    assert record is not None
    within = 0.25 if "batchtopk" in kind["kind"] else 1e-3
    l0 = float((latents > 0).sum(1).float().mean())
    assert l0 == pytest.approx(float(record[0, COLUMNS.index("l0")]), rel=within)
    error = (x - decode(loaded, latents)).square().sum(1).mean() * SCALE**2
    assert float(error) == pytest.approx(float(record[0, COLUMNS.index("mse")]), rel=within)


def test_every_number_of_a_record_is_that_of_the_plain_definition(
    resolved: Resolved, batches: list[NDArray[np.uint16]]
) -> None:
    group = group_of([resolved({"kind": "learned", "start": 2.0}, d_sae=F, l1=0.5, lambda_regularizer=0.1)])
    (before,) = group.trained_weights()
    record = group.step(batches[0], log=True, log_cosines=True)
    assert record is not None
    got = dict(zip(COLUMNS, record[0].tolist(), strict=True))
    x = torch.from_numpy(batches[0]).view(torch.bfloat16).to(torch.float32) * SCALE
    a = encode(before, x)
    gram = before.W_dec @ before.W_dec.T - torch.eye(F)
    penalty = float(gram.square().sum())
    mse, l1 = float((x - decode(before, a)).square().sum(1).mean()), 0.5 * float(a.sum(1).mean())
    variance = float((x - 0.5 * SCALE).square().sum(1).mean())
    expected = {
        "step": 0, "rows": B, "mse": mse, "sparsity_term": l1, "auxiliary_term": 0.0,
        "loss": mse + l1 + 2.0 * penalty + 0.1 * np.log(2.0) ** 2, "l0": float((a > 0).sum(1).float().mean()),
        "explained_variance": 1.0 - mse / variance, "lambda": 2.0, "scaled_penalty": penalty, "penalty": penalty,
        "penalty_lower_bound": 144 / 8 - 12, "penalty_excess": penalty - 6.0,
        "lambda_residual": 2.0 * penalty + 0.2 * np.log(2.0), "dead_latents": 0.0,
        "mean_max_cosine": float((gram - 9 * torch.eye(F)).amax(1).mean()),
    }  # fmt: skip
    expected["lr"] = 3e-3 / 20  # the first of 200 * 0.1 = 20 steps of warm-up
    absent = ("sparsity_coefficient", "hypergradient_cosine")  # no target and no derivative is followed
    assert all(np.isnan(got.pop(name)) for name in absent)
    assert got == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}


@pytest.mark.parametrize("kind", KINDS[1:5], ids=[kind["kind"] for kind in KINDS[1:5]])
def test_l1_does_nothing_where_the_kind_has_no_l1(
    kind: dict[str, Any], resolved: Resolved, batches: list[NDArray[np.uint16]]
) -> None:
    group = group_of([resolved(architecture=kind, d_sae=F, l1=l1) for l1 in (0.0, 5.0)])
    for bits in batches[:3]:
        group.step(bits)
    first, second = weights_of(group)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_variants_of_two_shapes_are_no_group(resolved: Resolved) -> None:
    with pytest.raises(
        ValueError, match=r"expected variants of one shape in a group, got 2: .*Group them by shape_key"
    ):
        group_of([resolved(d_sae=F), resolved(d_sae=F + 1)])


def test_a_target_below_what_directions_can_reach_is_refused(resolved: Resolved) -> None:
    # F 12, d 8: (12 - 8) / (8 * 11) = 0.0454545
    low = resolved({"kind": "dual", "start": 1.0, "target": 0.04, "rate": 0.1}, d_sae=F)
    with pytest.raises(ValueError, match=r"expected lambda.target of at least 0.0454545, .* got 0.04. Raise it"):
        group_of([low])
