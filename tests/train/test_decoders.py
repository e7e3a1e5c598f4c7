"""Decoders that are held: the formula by hand, a plain SAE beside them, and what settings do not go with them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from store.sae.artefact import load_card, load_sae
from store.sae.geometry import unit_rows
from train.config import VARIANTS, VariantSettings, shape_key
from train.group import VariantGroup, make_group
from train.steps.hold import put_back_
from train.steps.initialise import initial_decoder, initial_weights
from train.steps.make import group_bytes
from train.variants import relevant

D, F, B, NUM_STEPS = 8, 12, 32, 60
SCALE, MEAN = 0.5, [0.5] * D
FROZEN: dict[str, Any] = {"kind": "frozen"}
KINDS: list[dict[str, Any]] = [
    {"kind": "relu"},
    {"kind": "topk", "k": 3},
    {"kind": "batchtopk", "k": 3},
    {"kind": "jumprelu", "l0": 0.1},
    {"kind": "matryoshka-batchtopk", "k": 3, "widths": [4, 8]},
    {"kind": "gated"},
]
EACH_KIND = pytest.mark.parametrize("kind", KINDS, ids=[kind["kind"] for kind in KINDS])
Resolved = Callable[..., VariantSettings]
Batches = list[NDArray[np.uint16]]


def soft(min_cosine: float = 0.8) -> dict[str, Any]:
    return {"kind": "soft-frozen", "min_cosine": min_cosine}


@pytest.fixture(scope="module")
def batches() -> Batches:
    """60 batches: a mean plus sparse positive combinations of 10 directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(10, D, generator=generator)
    present = torch.rand(NUM_STEPS * B, 10, generator=generator) < 0.2
    rows = 3.0 * (present * torch.rand(NUM_STEPS * B, 10, generator=generator)) @ directions + 0.5
    return [np.ascontiguousarray(x) for x in np.split(rows.to(torch.bfloat16).view(torch.uint16).numpy(), NUM_STEPS)]


def group_of(settings: list[VariantSettings]) -> VariantGroup:
    cpu = torch.device("cpu")
    return make_group(settings, num_steps=NUM_STEPS, batch_rows=B, scale=SCALE, mean=MEAN, device=cpu)


def trained(group: VariantGroup, batches: Batches) -> list[dict[str, Tensor]]:
    for bits in batches:
        group.step(bits)
    return [sae.tensors() for sae in group.trained_weights()]


def cosines(W_dec: Tensor, *, seed: int = 0) -> Tensor:
    """Of every row with its start, in float64."""
    start = unit_rows(initial_decoder(d_sae=F, d_model=D, seed=seed).double())
    return (unit_rows(W_dec.double()) * start).sum(1)


def test_a_row_that_turned_too_far_comes_back_to_the_edge_and_the_others_stay() -> None:
    # Starts along x; least cosine 0.8: edges at (0.8, +-0.6). Directions at 0, 30, 60, -60 and 100 degrees.
    angles = torch.tensor([0.0, 30.0, 60.0, -60.0, 100.0]) * math.pi / 180.0
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    before, start = rows.clone(), torch.tensor([[1.0, 0.0]]).repeat(5, 1)
    put_back_(rows, start, min_cosine=0.8)
    assert torch.equal(rows[:2], before[:2])
    torch.testing.assert_close(rows[2:], torch.tensor([[0.8, 0.6], [0.8, -0.6], [1.0, 0.0]]))
    again = rows.clone()
    put_back_(again, start, min_cosine=0.8)
    torch.testing.assert_close(again, rows, rtol=0, atol=1e-6)


def test_a_row_keeps_its_length_and_one_of_zeros_or_nan_stays() -> None:
    rows = torch.tensor([[0.0, 5.0], [3.0, 4.0], [0.0, 0.0], [math.nan, 0.0]])
    put_back_(rows, torch.tensor([[1.0, 0.0]]).repeat(4, 1), min_cosine=0.8)
    expected = torch.tensor([[5.0, 0.0], [4.0, 3.0], [0.0, 0.0], [math.nan, 0.0]])
    torch.testing.assert_close(rows, expected, equal_nan=True)


@pytest.mark.parametrize("min_cosine", [0.01, 0.5, 0.8, 0.99, 0.9999])
@pytest.mark.parametrize("d_model", [2, 8, 192])
def test_wherever_a_row_was_it_comes_within_its_cosine_in_float32(d_model: int, min_cosine: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start, rows = (unit_rows(torch.randn(2000, d_model, generator=generator)) for _ in range(2))
    rows[:10] = -start[:10]
    put_back_(rows, start, min_cosine=min_cosine)
    wide = unit_rows(rows.double()) * unit_rows(start.double())
    assert float(wide.sum(1).min()) >= min_cosine - 1e-6
    assert float((rows.norm(dim=1) - 1.0).abs().max()) < 1e-6


def plain(
    kind: str, settings: VariantSettings, batches: Batches, *, min_cosine: float | None, frozen: bool
) -> dict[str, Tensor]:
    """One SAE by autograd and torch's Adam, written from the definitions; constant rates."""
    start = initial_weights(
        seeds=[settings.seed], d_sae=F, mean=MEAN, scale=SCALE, device=torch.device("cpu")
    )  # fmt: skip
    p = {name: tensor[0].clone().requires_grad_() for name, tensor in vars(start).items()}
    more = {"r_mag": torch.zeros(F), "b_mag": torch.zeros(F)} if kind == "gated" else {}
    p |= {name: tensor.requires_grad_() for name, tensor in more.items()}
    moving = [tensor for name, tensor in p.items() if not (frozen and name == "W_dec")]
    optimizer = torch.optim.Adam(moving, lr=settings.lr)
    u0 = start.W_dec[0].clone()
    for bits in batches:
        x = torch.from_numpy(bits).view(torch.bfloat16).float() * SCALE
        optimizer.zero_grad()
        plain_loss(kind, p, x, settings).backward()
        with torch.no_grad():
            W, g = p["W_dec"], p["W_dec"].grad
            if not frozen and g is not None:
                g -= (g * W).sum(1, keepdim=True) * W
            optimizer.step()
            if not frozen:
                W /= W.norm(dim=1, keepdim=True)
            if min_cosine is not None:
                for f in range(F):
                    c = W[f] @ u0[f]
                    if c < min_cosine:
                        across = W[f] - c * u0[f]
                        W[f] = min_cosine * u0[f] + math.sqrt(1 - min_cosine**2) * across / across.norm()
    return {name: tensor.detach() for name, tensor in p.items()}


def plain_loss(kind: str, p: dict[str, Tensor], x: Tensor, settings: VariantSettings) -> Tensor:
    centred, l1 = x - p["b_dec"], settings.l1
    assert isinstance(l1, float)
    direct = centred @ p["W_enc"].T
    pre = direct + p["b_enc"]
    if kind == "gated":
        a = (pre > 0) * torch.relu(direct * p["r_mag"].exp() + p["b_mag"])
        by_gate = torch.relu(pre) @ p["W_dec"].detach() + p["b_dec"].detach() - x
        sparse, aux = torch.relu(pre), by_gate.square().sum(1).mean()
    else:
        a = sparse = torch.relu(pre)
        aux = torch.zeros(())
        if kind == "batchtopk":
            a, l1 = a * (a >= a.flatten().topk(3 * B).values[-1]), 0.0
    error = a @ p["W_dec"] + p["b_dec"] - x
    return error.square().sum(1).mean() + l1 * (sparse * p["W_dec"].norm(dim=1)).sum(1).mean() + aux


@pytest.mark.parametrize("decoder", [FROZEN, soft(0.95)], ids=["frozen", "soft-frozen"])
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2], KINDS[5]], ids=["relu", "batchtopk", "gated"])
def test_it_trains_as_one_plain_sae_whose_decoder_is_held(
    kind: dict[str, Any], decoder: dict[str, Any], resolved: Resolved, batches: Batches
) -> None:
    settings = resolved(
        architecture=kind, d_sae=F, decoder=decoder, lr=1e-2, lr_warm_up_fraction=0.0, lr_decay_fraction=0.0
    )
    (got,) = trained(group_of([settings]), batches)
    expected = plain(
        kind["kind"], settings, batches, min_cosine=decoder.get("min_cosine"), frozen=decoder == FROZEN
    )  # fmt: skip
    expected["W_enc"] = expected["W_enc"].T
    if kind["kind"] == "gated":
        expected["b_gate"] = expected.pop("b_enc")
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("norm", ["unit", "free"])
@EACH_KIND
def test_a_frozen_decoder_keeps_every_bit_while_the_rest_is_trained(
    kind: dict[str, Any], norm: str, resolved: Resolved, batches: Batches
) -> None:
    settings = [
        resolved(architecture=kind, d_sae=F, decoder_norm=norm, decoder=decoder, lr=1e-2, gradient_clip=5.0)
        for decoder in ({"kind": "trained"}, FROZEN)
    ]
    group = group_of(settings)
    start = initial_decoder(d_sae=F, d_model=D, seed=0) * (1.0 if norm == "unit" else 0.1)
    free, held = trained(group, batches)
    assert torch.equal(held["W_dec"], start)
    assert not torch.allclose(free["W_dec"], start, atol=1e-2)
    assert not torch.allclose(held["W_enc"].T, start, atol=1e-2)
    state = group.state()
    moments = [tensor[1] for name, tensor in state.items() if name in ("adam_first.decoder", "adam_first.W_dec")]
    assert len(moments) == 1
    assert not bool(moments[0].any())


@pytest.mark.parametrize("norm", ["unit", "free"])
@EACH_KIND
def test_a_soft_frozen_decoder_keeps_its_cosine_and_reaches_it(
    kind: dict[str, Any], norm: str, resolved: Resolved, batches: Batches
) -> None:
    one, learned = {"kind": "fixed", "value": 1.0}, {"kind": "learned", "start": 1.0}
    shared = {"architecture": kind, "d_sae": F, "decoder_norm": norm, "lr": 3e-2}
    least = (0.9, 0.97, 0.9999)
    settings = [
        resolved(decoder=soft(least[0]), **shared),
        resolved(one, decoder=soft(least[1]), seed=1, **shared),
        resolved(learned, decoder=soft(least[2]), **shared),
    ]
    group, reached = group_of(settings), [False] * 3
    for bits in batches[:40]:
        group.step(bits)
        for index, sae in enumerate(group.trained_weights()):
            found = float(cosines(sae.W_dec, seed=settings[index].seed).min())
            assert found >= least[index] - 1e-6
            reached[index] |= found <= least[index] + 1e-6
    assert reached == [True] * 3


def five(resolved: Resolved, kind: dict[str, Any]) -> list[VariantSettings]:
    """Held and trained decoders that are stacked into one group."""
    auxk = {"kind": "auxk", "k": 4}
    shared = {"architecture": kind, "d_sae": F, "lr": 1e-2, "dead_latents": auxk, "dead_after_rows": 2 * B}
    one = {"kind": "fixed", "value": 1.0}
    return [
        resolved(one, **shared),
        resolved(decoder=FROZEN, **shared),
        resolved(one, decoder=soft(0.9), **shared),
        resolved(decoder=soft(0.8), seed=4, **shared),
        resolved(decoder=FROZEN, seed=4, gradient_clip=0.5, **shared),
    ]


@EACH_KIND
def test_held_decoders_share_a_group_with_trained_ones_and_train_as_alone(
    kind: dict[str, Any], resolved: Resolved, batches: Batches
) -> None:
    settings = five(resolved, kind)
    assert len({shape_key(variant) for variant in settings}) == 1
    together = trained(group_of(settings), batches)
    for mine, variant in zip(together, settings, strict=True):
        (alone,) = trained(group_of([variant]), batches)
        for name, tensor in alone.items():
            torch.testing.assert_close(mine[name], tensor, rtol=2e-3, atol=1e-4)


@EACH_KIND
def test_a_restored_group_of_held_decoders_goes_on_to_the_same_bits_and_stores_no_start(
    kind: dict[str, Any], resolved: Resolved, batches: Batches
) -> None:
    settings = five(resolved, kind)
    whole, first, second = (group_of(settings) for _ in range(3))
    trained(whole, batches[:30])
    trained(first, batches[:17])
    second.restore({name: tensor.clone() for name, tensor in first.state().items()}, num_steps_done=17)
    trained(second, batches[17:30])
    for name, tensor in whole.state().items():
        assert torch.equal(second.state()[name].nan_to_num(-1.0), tensor.nan_to_num(-1.0)), name
    plain_state = group_of([resolved(architecture=kind, d_sae=F)] * 5).state()
    sizes = {name: tensor.shape for name, tensor in whole.state().items()}
    assert sizes == {name: tensor.shape for name, tensor in plain_state.items()}


def test_a_held_decoder_that_diverges_becomes_zero_and_stays(resolved: Resolved, batches: Batches) -> None:
    settings = [resolved(d_sae=F, decoder=decoder) for decoder in (soft(), FROZEN)]
    group = group_of(settings)
    for index in range(2):
        group.freeze(index)
    assert not any(bool(tensor.any()) for sae in trained(group, batches[:2]) for tensor in sae.values())


@pytest.mark.parametrize("min_cosine", [0.0, 1.0, -0.5])
def test_a_cosine_that_holds_nothing_or_everything_is_refused(resolved: Resolved, min_cosine: float) -> None:
    with pytest.raises(ValueError, match=f"expected a cosine above 0 and below 1, got {min_cosine}"):
        resolved(decoder=soft(min_cosine))


def test_what_would_move_a_held_decoder_is_refused(resolved: Resolved) -> None:
    with pytest.raises(ValueError, match=r"expected lambda: .*beside decoder: \{kind: frozen\}.*got kind learned"):
        resolved({"kind": "learned", "start": 1.0}, decoder=FROZEN)
    for decoder in (FROZEN, soft()):
        with pytest.raises(ValueError, match=f"beside decoder: {{kind: {decoder['kind']}}}.*got kind resample"):
            resolved(decoder=decoder, dead_latents={"kind": "resample", "every_steps": 5})


def test_a_trained_decoder_is_no_part_of_what_identifies_a_variant(resolved: Resolved) -> None:
    """So SAEs of before there was such a setting are those that are asked for without it."""
    assert "decoder" not in relevant(resolved())
    assert "decoder" not in relevant(resolved(decoder={"kind": "trained"}))
    assert relevant(resolved(decoder=FROZEN))["decoder"] == FROZEN
    assert relevant(resolved(decoder={"kind": "soft-frozen"}))["decoder"] == soft(0.8)


def test_the_stage_writes_what_was_held_into_card_and_weights(
    train_files: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    zero = {"kind": "fixed", "value": 0.0}
    train_files(VARIANTS.validate_python({"baseline": {"lambda": zero}, "held": {"lambda": zero, "decoder": FROZEN}}))
    sae, card = load_sae(tmp_path / "models" / "held")
    assert torch.equal(sae.W_dec, initial_decoder(d_sae=24, d_model=16, seed=0))
    assert card.variant["decoder"] == FROZEN
    assert "decoder" not in load_card(tmp_path / "models" / "baseline").variant
    assert "decoder" not in card.train


def test_the_start_of_a_soft_frozen_decoder_counts_once_for_each_seed(resolved: Resolved) -> None:
    def cost(*settings: VariantSettings) -> int:
        return group_bytes(list(settings), d_model=D, batch_rows=B, device=torch.device("cpu"))

    free, held, other = resolved(d_sae=F), resolved(d_sae=F, decoder=soft()), resolved(d_sae=F, decoder=soft(), seed=1)
    matrix = 4 * F * D
    assert cost(held, other, held) - cost(free, free, free) == (2 + 4) * matrix  # two starts, and putting one back
    assert cost(resolved(d_sae=F, decoder=FROZEN)) == cost(free)
