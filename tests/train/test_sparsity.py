"""The sparsity coefficient that leads to a wanted L0: its formula by hand, and that it gets there."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from train.config import VariantSettings, steps_warning
from train.group import make_group
from train.metrics import COLUMNS
from train.sparsity import TargetL0, log_coefficient_step, reference_log_l0
from train.sparsity_controller import SparsityController

CPU = torch.device("cpu")
Resolved = Callable[..., VariantSettings]


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("u", "expected"),
    [
        (0.02, 46 * 1.04 * (200 / 46) ** 0.96),
        (0.25, 46 * 1.04 * (200 / 46) ** 0.5),
        (0.5, 46 * 1.04),
        (0.9, 46 * 1.02),
        (1.0, 46.0),
    ],
)
def test_the_reference_comes_down_from_the_first_l0_to_the_target(u: float, expected: float) -> None:
    found = reference_log_l0(u, wide(math.log(200)), target=wide(46), decay=wide(0.2))
    assert float(found.exp()) == pytest.approx(expected, rel=1e-12)


def test_a_step_is_the_gain_over_the_number_of_steps_times_the_error_cut_at_one() -> None:
    start = wide(0.0, 0.0, 0.0, math.log(100.0))
    average, reference = wide(0.5, 3.0, -3.0, 3.0), wide(0.0, 0.0, 0.0, 0.0)
    found = log_coefficient_step(start, average, reference, num_steps=900)
    assert found.tolist() == pytest.approx([0.01, 0.02, -0.02, math.log(100.0)])  # 18 / 900 = 0.02


def steps_of(
    l0_of: Callable[[Tensor], Tensor], settings: list[VariantSettings], num_steps: int
) -> tuple[Tensor, Tensor]:
    """Coefficients and L0 at the end, where L0 follows the coefficient at once."""
    controller = SparsityController(settings, num_steps=num_steps, device=CPU)
    for step in range(num_steps):
        controller.update(l0_of(controller.at(step)), step=step)
    return controller.at(num_steps), l0_of(controller.at(num_steps))


@pytest.mark.parametrize("target", [10.0, 46.0, 150.0])
def test_l0_ends_at_its_target_where_it_falls_as_a_power_of_the_coefficient(resolved: Resolved, target: float) -> None:
    settings = [resolved(d_sae=384, l1={"target_l0": target})]
    coefficient, l0 = steps_of(lambda l1: 60.0 * l1.pow(-1.2), settings, 900)
    assert float(l0) == pytest.approx(target, rel=0.01)
    assert float(coefficient) == pytest.approx((60.0 / target) ** (1 / 1.2), rel=0.01)


def test_jumprelu_is_steered_by_where_its_l0_will_be(resolved: Resolved) -> None:
    """L0 falls from 400 by a factor of e over the run; ref stands still at its value of u = 0.5 to 0.8, 46 * 1.04."""
    target = {"target_l0": 46.0, "start": 1.0}
    settings = [
        resolved(d_sae=384, l1=target), resolved(d_sae=384, architecture={"kind": "jumprelu", "l0": target})
    ]  # fmt: skip
    controller = SparsityController(settings, num_steps=1000, device=CPU)
    moved = wide(0.0, 0.0)
    for step in range(700):
        before = controller.log_coefficient.clone()
        controller.update(wide(*[57.0 * math.exp(0.7 - (step + 1) / 1000)] * 2), step=step)
        moved = controller.log_coefficient - before
    behind = (1 - 0.1) / 0.1 / 1000  # the moving average is 9 steps late
    relu = math.log(57.0) + behind - math.log(46 * 1.04)
    assert moved.tolist() == pytest.approx([0.018 * relu, 0.018 * (relu - 0.15)], rel=1e-4)


def test_variants_do_not_touch_each_other_and_fixed_ones_stay(resolved: Resolved) -> None:
    fixed = resolved(d_sae=384, l1=1.5)
    targets = [resolved(d_sae=384, l1={"target_l0": target, "start": 0.2}) for target in (20.0, 80.0)]

    def l0_of(l1: Tensor) -> Tensor:
        return 60.0 * l1.pow(-1.2)

    together, _ = steps_of(l0_of, [targets[0], fixed, targets[1]], 300)
    alone = [float(steps_of(l0_of, [variant], 300)[0]) for variant in targets]
    assert together.tolist() == [alone[0], 1.5, alone[1]]


def test_a_kind_that_selects_k_latents_has_no_coefficient(resolved: Resolved) -> None:
    settings = resolved(d_sae=384, l1={"target_l0": 46.0}, architecture={"kind": "topk", "k": 5})
    controller = SparsityController([settings], num_steps=900, device=CPU)
    assert not controller.has_targets
    assert controller.at(0).tolist() == [0.0]


def test_a_target_that_cannot_be_met_or_comes_with_a_warm_up_is_refused(resolved: Resolved) -> None:
    with pytest.raises(ValueError, match=r"expected target_l0 below d_sae = 12, got 46. Lower it"):
        resolved(d_sae=12, l1={"target_l0": 46.0})
    with pytest.raises(ValueError, match="expected sparsity_warm_up_fraction of 0 beside a target_l0"):
        resolved(d_sae=384, l1={"target_l0": 46.0}, sparsity_warm_up_fraction=0.1)


def test_a_run_that_is_too_short_for_a_target_is_told(resolved: Resolved) -> None:
    settings = {"plain": resolved(d_sae=384, l1=1.0), "wanted": resolved(d_sae=384, l1={"target_l0": 46.0})}
    assert "L0 will miss its target in wanted: 300 steps are too few" in steps_warning(settings, num_steps=300)
    assert steps_warning(settings, num_steps=600) == ""
    assert steps_warning({"plain": settings["plain"]}, num_steps=10) == ""


def test_the_setting_is_a_number_or_a_target() -> None:
    assert TargetL0(target_l0=46.0).start == 0.3
    with pytest.raises(ValueError, match="expected a number > 0, got 0"):
        TargetL0(target_l0=0.0)


@pytest.mark.parametrize("kind", ["relu", "gated", "jumprelu"])
def test_l0_ends_at_its_target_in_every_kind_that_has_a_coefficient_and_with_held_decoders(
    kind: str, resolved: Resolved
) -> None:
    """900 steps of 64 rows: sparse combinations of 10 directions."""
    num_steps, rows, target = 900, 64, {"target_l0": 4.0, "start": 0.05}
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(10, 8, generator=generator)
    present = torch.rand(num_steps, rows, 10, generator=generator) < 0.2
    x = 3.0 * (present * torch.rand(num_steps, rows, 10, generator=generator)) @ directions + 0.5
    architecture = {"kind": kind} | ({"l0": target} if kind == "jumprelu" else {})
    held: list[dict[str, Any]] = [{"kind": "trained"}, {"kind": "frozen"}, {"kind": "soft-frozen", "min_cosine": 0.9}]
    group = make_group(
        [resolved(architecture=architecture, d_sae=24, l1=target, lr=1e-2, decoder=decoder) for decoder in held],
        num_steps=num_steps, batch_rows=rows, scale=float(8**0.5 / x.square().sum(2).mean().sqrt()),
        mean=x.mean(dim=(0, 1)).tolist(), device=CPU,
    )  # fmt: skip
    last = []
    for step, batch in enumerate(x.to(torch.bfloat16).view(torch.uint16)):
        record = group.step(batch.numpy(), log=step >= 800)
        if record is not None:
            last.append(record[:, COLUMNS.index("l0")])
    assert torch.stack(last).mean(0).tolist() == pytest.approx([4.0] * 3, rel=0.05)
