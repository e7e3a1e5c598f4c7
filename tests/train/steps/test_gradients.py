"""Loss and gradients of every kind of SAE and every penalty against autograd in float64, one SAE at a time.

The reference is SAELens's own training SAE wherever it defines the same loss. Shapes: B 32 rows, D 8, F 20 or 6
latents, V 3 variants.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from store.sae.geometry import unit_rows
from train.architectures import FAST
from train.config import VariantSettings
from train.steps.analytic import AnalyticStep
from train.steps.autograd import AutogradStep
from train.steps.initialise import StackedWeights
from train.steps.protocol import Step

V, B, D = 3, 32, 8
K_AUX = D // 2  # SAELens's choice
SHARED: dict[str, Any] = {"d_in": D, "dtype": "float64", "device": "cpu", "apply_b_dec_to_input": True}
KINDS: dict[str, dict[str, Any]] = {
    "relu": {"kind": "relu"},
    "topk": {"kind": "topk", "k": 3},
    "batchtopk": {"kind": "batchtopk", "k": 3},
    "jumprelu": {"kind": "jumprelu", "l0": 0.3, "bandwidth": 0.5, "start_threshold": 0.4},
    "matryoshka-batchtopk": {"kind": "matryoshka-batchtopk", "k": 3, "widths": [2, 5]},
    "gated": {"kind": "gated"},
}
Resolved = Callable[..., VariantSettings]


def weights(F: int, *, unit: bool, seed: int = 0) -> StackedWeights:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    W_dec = draw(V, F, D)
    return StackedWeights(
        W_enc=draw(V, F, D), b_enc=0.3 * draw(V, F), W_dec=unit_rows(W_dec) if unit else W_dec, b_dec=0.5 * draw(V, D)
    )


def rows(seed: int = 1) -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stacked(settings: list[VariantSettings], start: StackedWeights, dtype: torch.dtype = torch.float64) -> Step:
    kind = AnalyticStep if isinstance(settings[0].architecture, FAST) else AutogradStep
    return kind(start, settings, batch_rows=B, product_dtype=dtype)


def shake(step: Step) -> None:
    """Biases of gates and magnitudes start at 0, where much cancels: moves them away."""
    generator = torch.Generator().manual_seed(7)
    for name in ("r_mag", "b_mag"):
        if name in step.parameters:
            noise = torch.randn(step.parameters[name].shape, generator=generator, dtype=torch.float64)
            step.parameters[name].copy_(0.3 * noise)


def computed(step: Step, l1s: list[float], dead: Tensor | None = None, x: Tensor | None = None) -> Step:
    step.input_DB.copy_((rows() if x is None else x).T)
    step.compute(sparsity_V=torch.tensor(l1s, dtype=torch.float64), dead_VF=dead)
    return step


def sparsity(kind: str) -> list[float]:
    return {"relu": [0.0, 0.3, 2.0], "gated": [0.0, 0.3, 2.0], "jumprelu": [0.0, 0.3, 1.0]}.get(kind, [0.0] * V)


def theirs(kind: str, F: int, coefficient: float) -> Any:  # noqa: ANN401 - classes of SAELens
    """SAELens's training SAE of a kind; with selection not rescaled by decoder lengths, as ours."""
    shared = {**SHARED, "d_sae": F}
    free = {"rescale_acts_by_decoder_norm": False, "aux_loss_coefficient": coefficient}
    match kind:
        case "relu":
            return StandardTrainingSAE(StandardTrainingSAEConfig(**shared, l1_coefficient=coefficient))
        case "topk":
            return TopKTrainingSAE(TopKTrainingSAEConfig(**shared, **free, k=3))
        case "batchtopk":
            return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**shared, **free, k=3))
        case "matryoshka-batchtopk":
            config = MatryoshkaBatchTopKTrainingSAEConfig(**shared, **free, k=3, matryoshka_widths=[2, 5, F])
            return MatryoshkaBatchTopKTrainingSAE(config)
        case _:
            return JumpReLUTrainingSAE(
                JumpReLUTrainingSAEConfig(
                    **shared, l0_coefficient=coefficient, jumprelu_bandwidth=0.5, jumprelu_init_threshold=0.4
                )
            )


def their_loss(
    kind: str, F: int, step: Step, variant: int, coefficient: float, dead: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of SAELens's SAE with the weights of one of ours, and its parameters by name."""
    sae = theirs(kind, F, coefficient)
    with torch.no_grad():
        for name, mine in named(step, variant).items():
            parameter = getattr(sae, name)
            assert parameter.shape == mine.shape
            parameter.data = mine.clone()  # their threshold is float32 otherwise
    key = {"relu": "l1", "jumprelu": "l0"}.get(kind)
    output = sae.training_forward_pass(
        TrainStepInput(
            sae_in=rows(),
            dead_neuron_mask=dead,
            coefficients={key: coefficient} if key else {},
            n_training_steps=0,
            is_logging_step=False,
        )
    )
    return output.loss, {name: getattr(sae, name) for name in named(step, variant)}


def named(step: Step, variant: int, *, gradients: bool = False) -> dict[str, Tensor]:
    """Weights or gradients of one variant under the names and in the shapes of an artefact."""
    source = step.gradients if gradients else step.parameters
    if "encoder" in source:
        return {
            "W_enc": source["encoder"][variant, :, :D].T,
            "b_enc": source["encoder"][variant, :, D],
            "W_dec": source["decoder"][variant, :, :D],
            "b_dec": source["b_dec"][variant],
        }
    return {name: tensor[variant].T if name == "W_enc" else tensor[variant] for name, tensor in source.items()}


def own_loss(step: Step, variant: int) -> Tensor:
    return (step.squared_error() + step.sparsity_terms() + step.auxiliary_terms())[variant]


def gated_loss(p: dict[str, Tensor], l1: float) -> Tensor:
    """Rajamanoharan et al. 2024, equation 8: the auxiliary reconstruction goes through a frozen decoder."""
    x, centred = rows(), rows() - p["b_dec"]
    gate = centred @ p["W_enc"] + p["b_enc"]
    a = (gate > 0) * torch.relu(centred @ (p["W_enc"] * p["r_mag"].exp()) + p["b_mag"])
    error = x - a @ p["W_dec"] - p["b_dec"]
    by_gate = x - torch.relu(gate) @ p["W_dec"].detach() - p["b_dec"].detach()
    sparse = (torch.relu(gate) * p["W_dec"].norm(dim=1)).sum(1).mean()
    return error.square().sum(1).mean() + l1 * sparse + by_gate.square().sum(1).mean()


def reference(kind: str, F: int, step: Step, variant: int, coefficient: float) -> tuple[Tensor, dict[str, Tensor]]:
    if kind != "gated":
        return their_loss(kind, F, step, variant, coefficient)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in named(step, variant).items()}
    return gated_loss(leaves, coefficient), leaves


def naive_penalty(kind: str, W_dec: Tensor) -> Tensor:
    U = W_dec / W_dec.norm(dim=1, keepdim=True)
    gram = U @ U.T - torch.eye(len(U), dtype=U.dtype)
    if kind == "gram":
        return gram.square().sum()
    return (gram - 9.0 * torch.eye(len(U), dtype=U.dtype)).amax(dim=1).square().mean()


@pytest.mark.parametrize("penalty", ["gram", "max-cosine"])
@pytest.mark.parametrize("norm", ["unit", "free"])
@pytest.mark.parametrize("F", [6, 20])  # below and above D
@pytest.mark.parametrize("kind", list(KINDS))
def test_loss_and_gradients_equal_autograd_in_float64(
    kind: str, F: int, norm: str, penalty: str, resolved: Resolved
) -> None:
    settings = resolved(architecture=KINDS[kind], d_sae=F, decoder_norm=norm, penalty={"kind": penalty})
    step, lam = stacked([settings] * V, weights(F, unit=norm == "unit")), 0.7
    shake(step)
    computed(step, sparsity(kind))
    for variant in range(V):
        loss, parameters = reference(kind, F, step, variant, sparsity(kind)[variant])
        torch.testing.assert_close(own_loss(step, variant), loss.detach(), rtol=1e-12, atol=0)
        loss = loss + lam * naive_penalty(penalty, parameters["W_dec"])
        expected = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        this = slice(variant, variant + 1)
        settings.penalty.add_gradients_(
            step.W_dec[this], step.W_dec_gradient[this],
            weight_V=torch.tensor([lam], dtype=torch.float64), unit=norm == "unit", seeds=[0], step=0,
        )  # fmt: skip
        got = named(step, variant, gradients=True)
        assert set(got) == set(expected)
        if norm == "unit":  # the optimiser takes away what lies along a row, from both alike
            for gradients in (got, expected):
                W_dec = step.W_dec[variant]
                gradients["W_dec"] = gradients["W_dec"] - (gradients["W_dec"] * W_dec).sum(1, keepdim=True) * W_dec
        for name, gradient in got.items():
            torch.testing.assert_close(
                gradient, expected[name], rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka-batchtopk"])
def test_auxk_and_its_gradients_equal_saelens(kind: str, resolved: Resolved) -> None:
    F, coefficient = 20, 0.25
    auxk = {"kind": "auxk", "k": K_AUX, "coefficient": coefficient}
    settings = resolved(architecture=KINDS[kind], d_sae=F, decoder_norm="free", dead_latents=auxk)
    dead = torch.zeros(V, F, dtype=torch.bool)
    dead[0, 4:16] = True  # more than k are dead
    dead[1, [3, 17]] = True  # fewer, so that the loss is halved
    step = computed(stacked([settings] * V, weights(F, unit=False)), [0.0] * V, dead)
    for variant in range(V):
        loss, parameters = their_loss(kind, F, step, variant, coefficient, dead[variant])
        torch.testing.assert_close(own_loss(step, variant), loss.detach(), rtol=1e-12, atol=0)
        expected = torch.autograd.grad(loss, list(parameters.values()))
        for gradient, wanted in zip(named(step, variant, gradients=True).values(), expected, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_second_step_on_the_same_buffers_forgets_the_first(kind: str, resolved: Resolved) -> None:
    auxk = {"kind": "auxk", "k": 4}
    settings = [resolved(architecture=KINDS[kind], d_sae=20, dead_latents=auxk)] * V
    dead = torch.zeros(V, 20, dtype=torch.bool)
    dead[:, :6] = True
    used = computed(stacked(settings, weights(20, unit=True)), sparsity(kind), dead, rows(5))
    computed(used, sparsity(kind), None, rows(6))
    fresh = computed(stacked(settings, weights(20, unit=True)), sparsity(kind), None, rows(6))
    for name, gradient in used.gradients.items():
        assert torch.equal(gradient, fresh.gradients[name]), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_gradients_in_the_dtypes_of_training_stay_close_to_float64(
    kind: str, dtype: torch.dtype, tolerance: float, resolved: Resolved
) -> None:
    # bfloat16 products round at 2^-9 = 0.002 per number; the tolerance is relative to the norm of a whole gradient.
    exact, settings = weights(20, unit=True), [resolved(architecture=KINDS[kind], d_sae=20)] * V
    rounded = StackedWeights(*(tensor.to(torch.float32) for tensor in vars(exact).values()))
    got = computed(stacked(settings, rounded, dtype), sparsity(kind)).gradients
    expected = computed(stacked(settings, exact), sparsity(kind)).gradients
    for name in ("W_enc", "W_dec", "b_dec") if kind == "gated" else ("encoder", "decoder", "b_dec"):
        sizes = [
            gradient.double()[:, :, :D] if gradient.ndim == 3 else gradient for gradient in (got[name], expected[name])
        ]
        difference = float((sizes[0] - sizes[1]).norm() / sizes[1].norm())
        assert tolerance / 1000 < difference < 2 * tolerance, name  # products of float64 would not differ


def test_biases_and_l1_ride_through_bfloat16_products_with_float32_precision(resolved: Resolved) -> None:
    # With zero weights pre is the carried bias alone, and the gradient of a positive pre the carried l1 / B.
    F, l1 = 4, 0.1234567
    b_enc = torch.tensor([[0.777777, 1.234567, 1e-4, 3.3333333]])
    start = StackedWeights(torch.zeros(1, F, D), b_enc, torch.zeros(1, F, D), torch.zeros(1, D))
    fused = AnalyticStep(start, [resolved(d_sae=F)], batch_rows=B, product_dtype=torch.bfloat16)
    fused.compute(sparsity_V=torch.tensor([l1], dtype=torch.float64), dead_VF=None)
    torch.testing.assert_close(fused._dec_VFK[0, :, D:].float().sum(1), torch.full((F,), l1 / B), rtol=1e-6, atol=0)
    torch.testing.assert_close(fused._enc_VFK[0, :, D:].float().sum(1), b_enc[0], rtol=1e-6, atol=0)
