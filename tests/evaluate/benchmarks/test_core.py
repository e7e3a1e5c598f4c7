"""The core benchmark on a real (tiny) Gemma-2, with SAEs whose metrics are known beforehand."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sae_bench.custom_saes.relu_sae import ReluSAE
from sae_lens.evals import ExplainedVarianceCalculator
from torch import Tensor

from benchmarks import plain_sae_bench
from evaluate import sae_bench as adapter
from evaluate.benchmarks import core
from evaluate.benchmarks.benchmark import EvaluatedSAE, Measurement
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.registry import BENCHMARKS, check_measurement
from evaluate.kept import KeptSetUps
from evaluate.row_statistics import RowStatistics
from evaluate.sae_bench import to_sae_bench
from language_model.load import load_bridge, load_model
from store.cache.norm_limit import NormLimit
from store.read.cache import ActivationCache
from store.sae.artefact import load_sae
from store.sae.weights import SAEWeights, decode, encode

CPU = torch.device("cpu")


@pytest.fixture
def context(study: SimpleNamespace) -> BenchmarkContext:
    return BenchmarkContext(
        place=study.cache,
        manifest=study.manifest,
        model=study.model,
        cards={},
        held_out=ActivationCache(study.cache).held_out_tokens(),
        kept=KeptSetUps(study.root / "set-ups", budget_bytes=2**30),
        device=CPU,
    )


def measure(study: SimpleNamespace, name: str, context: BenchmarkContext) -> Measurement:
    """Sets up and measures one SAE, as the run does."""
    weights, card = load_sae(study.models / name)
    context = dataclasses.replace(context, cards={name: card})
    measurement = core.measure(
        EvaluatedSAE(name, weights, card), study.config.core, context, core.prepare(study.config.core, context)
    )
    check_measurement(BENCHMARKS["core"], measurement)
    return measurement


@pytest.fixture
def measured(
    study: SimpleNamespace, context: BenchmarkContext, add_sae: Callable[..., None]
) -> Callable[[SAEWeights], Measurement]:
    def measured(weights: SAEWeights) -> Measurement:
        add_sae("tested", weights)
        return measure(study, "tested", context)

    return measured


def held_out_rows(study: SimpleNamespace, num_sequences: int) -> tuple[Tensor, Tensor]:
    """Hidden states of the plain model behind the hook, rounded to bfloat16 as the cache has them, (rows, d), and which
    rows count: not BOS, not EOS."""
    tokens = ActivationCache(study.cache).held_out_tokens()[:num_sequences].astype(np.int64)
    model = load_model(study.model_folder, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        states = model(input_ids=torch.from_numpy(tokens), output_hidden_states=True).hidden_states[2]
    states = states.to(torch.bfloat16).float()
    return states.reshape(-1, states.shape[-1]), torch.from_numpy(~np.isin(tokens, [0, 1, 2])).reshape(-1)


def test_the_adapted_sae_encodes_and_decodes_as_the_stored_one_and_as_sae_benchs_own_class(
    study: SimpleNamespace, saes: SimpleNamespace, add_sae: Callable[..., None]
) -> None:
    add_sae("tested", saes.random(1))
    weights, card = load_sae(study.models / "tested")
    sae = to_sae_bench(weights, card, device=CPU)
    plain = ReluSAE(32, 64, "any", 1, CPU, torch.float32)
    plain.load_state_dict(sae.state_dict())
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = sae.encode(x)
        assert float((latents > 0).float().mean()) > 0.05
        torch.testing.assert_close(latents, encode(weights, x))
        torch.testing.assert_close(latents, plain.encode(x), rtol=0, atol=0)
        torch.testing.assert_close(sae.decode(latents), decode(weights, encode(weights, x)))
        torch.testing.assert_close(sae.decode(latents), plain.decode(latents), rtol=0, atol=0)
    assert (sae.cfg.hook_name, sae.cfg.hook_layer, sae.cfg.d_sae) == (card.hook, 1, 64)
    assert sae.cfg.metadata.hook_name == card.hook


def test_the_adapted_sae_stays_in_float32_on_bfloat16_activations(
    study: SimpleNamespace, saes: SimpleNamespace, add_sae: Callable[..., None]
) -> None:
    add_sae("tested", saes.random(1))
    weights, card = load_sae(study.models / "tested")
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with torch.no_grad():
        latents = to_sae_bench(weights, card, device=CPU).encode(x)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, encode(weights, x.float()))


def test_weights_that_were_not_loaded_are_an_error_and_not_a_result_at_chance_level(
    study: SimpleNamespace, saes: SimpleNamespace, add_sae: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_sae("tested", saes.random(1))
    weights, card = load_sae(study.models / "tested")
    monkeypatch.setattr(adapter.StoredSAE, "hold", lambda self, weights: None)
    with pytest.raises(ValueError, match="sae-bench's copy of tested to hold the artefact's W_enc, got other numbers"):
        to_sae_bench(weights, card, device=CPU)


def test_an_sae_that_reconstructs_exactly_recovers_all_of_the_loss(
    saes: SimpleNamespace, measured: Callable[[SAEWeights], Measurement]
) -> None:
    metrics = measured(saes.identity()).metrics
    assert metrics["explained_variance"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["ce_loss_score"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["ce_loss_with_sae"] == pytest.approx(metrics["ce_loss_without_sae"], abs=1e-5)
    assert metrics["kl_div_with_sae"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["l0"] == 32.0  # one of +x_i and -x_i for each of 32 channels
    assert metrics["num_dead_latents"] == 0


def test_a_dead_sae_gives_the_loss_of_the_activation_set_to_zero_outside_bos(
    study: SimpleNamespace, saes: SimpleNamespace, measured: Callable[[SAEWeights], Measurement]
) -> None:
    result = measured(saes.dead())
    metrics = result.metrics
    assert metrics["l0"] == 0
    assert metrics["num_dead_latents"] == metrics["num_constant_latents"] == 64
    assert metrics["fraction_dead_latents"] == 1.0
    assert metrics["cosine_similarity"] == 0.0
    assert metrics["ce_loss_with_sae"] == pytest.approx(zeroed_loss(study), abs=1e-5)
    assert result.details["sae_bench"]["reconstruction_quality"]["cossim"] is None


def zeroed_loss(study: SimpleNamespace) -> float:
    """Cross-entropy with the hook's activations zero but at BOS and EOS, by a hook on the plain model."""
    tokens = torch.from_numpy(ActivationCache(study.cache).held_out_tokens().astype(np.int64))
    keep = torch.isin(tokens, torch.tensor([0, 1, 2]))
    model = load_model(study.model_folder, dtype=torch.float32, device="cpu")

    def zero(module: torch.nn.Module, arguments: object, output: Tensor | tuple[Tensor, ...]) -> object:
        state = output[0] if isinstance(output, tuple) else output
        zeroed = torch.where(keep[..., None], state, torch.zeros_like(state))
        return (zeroed, *output[1:]) if isinstance(output, tuple) else zeroed

    handle = model.model.layers[1].register_forward_hook(zero)
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[:, :-1]
    handle.remove()
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return float(losses[~keep[:, :-1]].mean())


def test_explained_variance_mse_and_l0_equal_a_plain_computation_on_the_models_hidden_states(
    study: SimpleNamespace, saes: SimpleNamespace, measured: Callable[[SAEWeights], Measurement]
) -> None:
    weights = saes.random(5)
    result = measured(weights)
    states, counted = held_out_rows(study, study.config.core.num_sparsity_sequences)
    x = states[counted].double()
    latents = encode(weights, states[counted])
    residual = (x - decode(weights, latents).double()).square().sum()
    total = (x - x.mean(dim=0)).square().sum()
    metrics = result.metrics
    # 6 windows of 12 tokens; 6 of them BOS and 1 EOS
    assert metrics["num_rows"] == counted.sum() == 6 * 12 - 6 - 1
    assert metrics["explained_variance"] == pytest.approx(float(1 - residual / total), rel=1e-6)
    assert metrics["mse"] == pytest.approx(float(residual) / 65, rel=1e-6)
    assert metrics["l0"] == pytest.approx(float((latents > 0).sum()) / 65, rel=1e-6)
    assert metrics["l1"] == pytest.approx(float(latents.sum()) / 65, rel=1e-5)
    assert result.details["firing_counts"] == (latents > 0).sum(dim=0).tolist()
    # 1 % of 65 rows is one row.
    largest = x[x.norm(dim=1).argmax()]
    share = float((largest - x.mean(dim=0)).square().sum() / total)
    assert result.details["top_rows_variance_share"] == pytest.approx(share, rel=1e-9)
    ratio = float(x.norm(dim=1).max() / x.norm(dim=1).median())
    assert result.details["outlier_rows"] == {
        "num_rows": 65, "num_outliers": 0, "largest_over_median": pytest.approx(ratio), "variance_share": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize("batch_rows", [300, 7])
def test_one_row_in_a_thousand_at_a_thousand_times_the_norm_is_found_whatever_the_batches(
    saes: SimpleNamespace, batch_rows: int
) -> None:
    rows = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    rows[123] *= 1000.0
    weights = saes.random(1)
    statistics = RowStatistics(num_sequences=60, most_rows=720, d_model=32, d_sae=64, device=CPU)
    for batch in torch.arange(300).split(batch_rows):
        latents = encode(weights, rows[batch])
        statistics.add(rows[batch], latents, decode(weights, latents), batch // 5)
    found = statistics.figures()
    x, wide = rows[123].double(), rows.double()
    deviations = (wide - wide.mean(dim=0)).square().sum(dim=1)
    top = wide.norm(dim=1).topk(3).indices  # 1 % of 300 rows
    assert found.top_rows_variance_share == pytest.approx(float(deviations[top].sum() / deviations.sum()), rel=1e-9)
    assert found.outlier_rows.num_outliers == 1
    assert found.outlier_rows.largest_over_median == pytest.approx(float(x.norm() / wide.norm(dim=1).median()))
    assert found.outlier_rows.variance_share == pytest.approx(float(deviations[123] / deviations.sum()), rel=1e-9)
    assert found.outlier_rows.decide


def test_explained_variance_is_that_of_saelens_and_not_the_one_about_zero_of_sae_bench(
    study: SimpleNamespace, saes: SimpleNamespace, measured: Callable[[SAEWeights], Measurement]
) -> None:
    weights = saes.random(5)
    result = measured(weights)
    states, counted = held_out_rows(study, study.config.core.num_sparsity_sequences)
    x = states[counted]
    calculator = ExplainedVarianceCalculator()
    calculator.add_batch(decode(weights, encode(weights, x)), x)
    assert result.metrics["explained_variance"] == pytest.approx(calculator.compute(), abs=1e-4)
    about_zero = result.details["sae_bench"]["reconstruction_quality"]["explained_variance"]
    assert about_zero != pytest.approx(result.metrics["explained_variance"], abs=1e-3)


def test_the_loss_without_the_sae_is_the_plain_models_cross_entropy_without_a_second_bos(
    study: SimpleNamespace, saes: SimpleNamespace, measured: Callable[[SAEWeights], Measurement]
) -> None:
    tokens = torch.from_numpy(ActivationCache(study.cache).held_out_tokens().astype(np.int64))
    model = load_model(study.model_folder, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    counted = ~torch.isin(tokens[:, :-1], torch.tensor([0, 1, 2]))
    metrics = measured(saes.random(1)).metrics
    assert metrics["ce_loss_without_sae"] == pytest.approx(float(losses[counted].mean()), abs=1e-5)


def test_losses_of_a_bfloat16_language_model_are_not_rounded_to_bfloat16(
    study: SimpleNamespace, context: BenchmarkContext, saes: SimpleNamespace, add_sae: Callable[..., None]
) -> None:
    add_sae("tested", saes.identity())
    spec = study.manifest.spec.model_copy(update={"compute_dtype": "bfloat16"})
    halved = dataclasses.replace(context, manifest=study.manifest.model_copy(update={"spec": spec}))
    metrics = measure(study, "tested", halved).metrics
    loss = metrics["ce_loss_without_sae"]
    assert float(torch.tensor(loss).to(torch.bfloat16)) != loss
    # +x_i and -x_i reproduce bfloat16 activations exactly
    assert metrics["ce_loss_with_sae"] == pytest.approx(loss, abs=1e-6)


def test_metrics_that_are_not_finite_or_missing_are_errors_that_name_them(
    saes: SimpleNamespace, measured: Callable[[SAEWeights], Measurement]
) -> None:
    right = measured(saes.random(1))
    broken = dataclasses.replace(right, metrics=right.metrics | {"l0": float("nan")})
    with pytest.raises(ValueError, match=r"expected finite metrics, got \{'l0': nan\}"):
        check_measurement(BENCHMARKS["core"], broken)
    lacking = {name: value for name, value in right.metrics.items() if name != "l2_ratio"}
    with pytest.raises(ValueError, match="that core declares, but core/l2_ratio is missing"):
        check_measurement(BENCHMARKS["core"], dataclasses.replace(right, metrics=lacking))


def test_text_is_never_read_twice_to_fill_a_batch(
    study: SimpleNamespace, context: BenchmarkContext, saes: SimpleNamespace, add_sae: Callable[..., None]
) -> None:
    add_sae("tested", saes.random(1))
    short = dataclasses.replace(context, held_out=context.held_out[:4])
    with pytest.raises(ValueError, match="expected enough held-out sequences for the benchmark, got fewer"):
        measure(study, "tested", short)


def sae_bench_by_itself(study: SimpleNamespace, sae: adapter.StoredSAE) -> dict[str, float]:
    """What sae-bench computes, the language model running for this SAE alone on the same text."""
    return plain_sae_bench.core(
        load_bridge(study.model_folder, dtype=torch.float32, device="cpu"),
        sae,
        ActivationCache(study.cache).held_out_tokens(),
        num_reconstruction_sequences=8,
        num_sparsity_sequences=6,
        batch_sequences=2,
        ignored=frozenset({0, 1, 2}),
    )


def test_the_numbers_are_those_of_sae_bench_by_itself(
    study: SimpleNamespace, saes: SimpleNamespace, measured: Callable[[SAEWeights], Measurement]
) -> None:
    weights = saes.random(5)
    result = measured(weights)
    stored, card = load_sae(study.models / "tested")
    alone = sae_bench_by_itself(study, to_sae_bench(stored, card, device=CPU))
    for name in BENCHMARKS["core"].metrics:
        if name.startswith(("ce_loss", "kl_div")):
            assert result.metrics[name] == pytest.approx(alone[name], rel=2e-4, abs=2e-6), name
    # Its rows are float32, ours the bfloat16 of the cache.
    for name in ("l0", "l1", "l2_ratio"):
        assert result.metrics[name] == pytest.approx(alone[name], rel=5e-3), name
    ours = result.details["sae_bench"]
    for group, name in (("reconstruction_quality", "explained_variance"), ("shrinkage", "l2_norm_in")):
        assert ours[group][name] == pytest.approx(alone[name], rel=5e-3), name


def test_what_no_sae_changes_is_computed_once_and_found_again(
    study: SimpleNamespace, context: BenchmarkContext, saes: SimpleNamespace, add_sae: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    add_sae("tested", saes.random(1))
    first = measure(study, "tested", context)
    monkeypatch.setattr("evaluate.upper_layers.Resumable.run", lambda *_: pytest.fail("it ran again"))
    again = measure(study, "tested", context)
    assert (again.metrics, again.standard_errors) == (first.metrics, first.standard_errors)


def test_the_standard_errors_come_from_leaving_each_sequence_out(
    saes: SimpleNamespace, measured: Callable[[SAEWeights], Measurement]
) -> None:
    result = measured(saes.random(5))
    errors = result.standard_errors
    assert set(result.arrays) == {f"without_one/{name}" for name in errors}
    assert result.arrays["without_one/l0"].shape == (6,)
    assert result.arrays["without_one/ce_loss_with_sae"].shape == (8,)
    # The mean of the values without each sequence is near that of all.
    assert result.arrays["without_one/explained_variance"].mean() == pytest.approx(
        result.metrics["explained_variance"], abs=0.02
    )
    assert 0.0 < errors["explained_variance"] < 0.2
    assert 0.0 < errors["ce_loss_with_sae"] < 1.0
    # Nothing varies between sequences when every row has one and the same L0.
    assert measured(saes.identity()).standard_errors["l0"] == pytest.approx(0.0, abs=1e-9)


def test_too_little_memory_is_said_before_the_language_model_is_loaded(
    study: SimpleNamespace, context: BenchmarkContext, saes: SimpleNamespace, add_sae: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    add_sae("tested", saes.random(1))
    monkeypatch.setattr("compute.memory.available", lambda device: 5 * 10**8)
    monkeypatch.setattr("evaluate.loaded_model.load_model", lambda *_, **__: pytest.fail("it was loaded"))
    # 5 tensors of 2^27 bytes of logits are 0.67 GB.
    with pytest.raises(ValueError, match=r"expected 0\.7 GB of free memory on cpu .* got 0\.5 GB\. Close other"):
        measure(study, "tested", context)


def test_figures_are_of_rows_within_the_limit_of_the_norm_and_those_of_all_rows_stand_beside_them(
    study: SimpleNamespace, context: BenchmarkContext, saes: SimpleNamespace, add_sae: Callable[..., None]
) -> None:
    weights = saes.random(5)
    states, counted = held_out_rows(study, study.config.core.num_sparsity_sequences)
    x = states[counted].double()
    squared = x.square().sum(dim=1)
    edge = float(squared.median())
    limit = NormLimit(
        times_median=1.0, median=edge**0.5, squared_norm=edge, num_rows=100, num_rows_above=50,
        variance_share_above=0.9,
    )  # fmt: skip
    add_sae("limited", weights, norm_limit=limit)
    add_sae("free", weights)
    limited, free = (measure(study, name, context).metrics for name in ("limited", "free"))
    kept = states[counted][squared < edge]
    wide, output = kept.double(), decode(weights, encode(weights, kept)).double()
    residual, total = (wide - output).square().sum(), (wide - wide.mean(dim=0)).square().sum()
    assert limited["num_rows"] == len(kept) == 32  # of 65 rows, those below the 33rd
    assert limited["explained_variance"] == pytest.approx(float(1 - residual / total), rel=1e-6)
    assert limited["mse"] == pytest.approx(float(residual) / 32, rel=1e-6)
    assert limited["l0"] == pytest.approx(float((encode(weights, kept) > 0).sum()) / 32, rel=1e-6)
    for name in ("explained_variance", "mse", "cosine_similarity", "l0", "l1", "num_rows"):
        assert limited[f"{name}_all_rows"] == free[f"{name}_all_rows"] == free[name]
    assert limited["ce_loss_with_sae"] == free["ce_loss_with_sae"]
