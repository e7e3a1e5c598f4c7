"""mdl: sae-bench's own numbers on held-out rows, with the words that go with them."""

import logging
import sys
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from sae_lens import ActivationsStore

from evaluate.benchmarks.benchmark import EvaluatedSAE, NotMeasurable
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.benchmarks.mdl import BENCHMARK, MDLConfig, num_held_out_sequences, num_steps
from evaluate.sae_bench import to_sae_bench
from language_model.load import load_bridge
from store.read.cache import ActivationCache
from store.sae.weights import SAEWeights
from tests.evaluate.benchmarks.conftest import measured

CONFIG = MDLConfig(
    k_values=[4, 8], num_bins_values=[4, 8], random_seed=42, sae_batch_size=2, mse_epsilon_threshold=0.01
)
StudySAE = Callable[[SAEWeights], EvaluatedSAE]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of SAELens and torch, in the code as it is by itself
def test_the_numbers_are_those_of_sae_bench_by_itself_on_the_language_models_own_rows(
    study: SimpleNamespace, study_context: BenchmarkContext, study_sae: StudySAE, saes: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sae = study_sae(saes.random(5))
    ours = measured("mdl", CONFIG, study_context, sae)
    loguru = types.ModuleType("loguru")
    loguru.__dict__["logger"] = logging.getLogger("loguru")
    monkeypatch.setitem(sys.modules, "loguru", loguru)
    from sae_bench.evals.mdl import main
    from sae_bench.evals.mdl.eval_config import MDLEvalConfig

    config = MDLEvalConfig(k_values=[4, 8], num_bins_values=[4, 8], sae_batch_size=2)

    def without_bos(*arguments: Any, **keywords: Any) -> ActivationsStore:  # noqa: ANN401 - passed on
        rows = ActivationsStore.from_sae(*arguments, **keywords)
        rows.exclude_special_tokens = torch.tensor([2])
        return rows

    monkeypatch.setattr(main, "config", config, raising=False)
    monkeypatch.setattr(main, "ActivationsStore", SimpleNamespace(from_sae=without_bos))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    tokens = ActivationCache(study.cache).held_out_tokens()[:4].astype(np.int64)
    found = main.run_eval_single_sae(
        config,
        to_sae_bench(sae.weights, sae.card, device=torch.device("cpu")),
        load_bridge(study.model_folder, dtype=torch.float32, device="cpu"),
        "cpu",
        dataset_name=datasets.Dataset.from_dict({"tokens": tokens}),
    )
    torch.set_grad_enabled(True)
    of_ours = ours.details["sae_bench"]
    assert [(entry["num_bins"], entry["k"]) for entry in of_ours] == [(4, 4), (4, 8), (8, 4), (8, 8)]
    for mine, theirs in zip(of_ours, found, strict=True):
        # Their rows are float32, ours the bfloat16 of the cache; what fires is the same but for the last bit.
        assert mine["description_length"] == pytest.approx(theirs["description_length"], rel=2e-2)
        assert mine["mse_loss"] == pytest.approx(theirs["mse_loss"], rel=1e-3)
        assert mine["within_threshold"] == theirs["within_threshold"]
    assert ours.basis == {"rows": 4 * 11, "latents": 64, "binnings": 4}


def test_bits_are_those_of_a_computation_by_hand_and_the_floor_and_k_are_as_the_remarks_say(
    study_context: BenchmarkContext, study_sae: StudySAE, saes: SimpleNamespace
) -> None:
    ours = measured("mdl", CONFIG, study_context, study_sae(saes.identity()))
    bits = study_context.held_out_cache.rows("blocks.1.hook_resid_post", np.arange(44), split="held_out")
    x = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    fires = np.concatenate([x > 0, x < 0], axis=1).mean(axis=0)
    fires = fires[(fires > 0) & (fires < 1)]
    # Activations are far below 100, so all lie in one bin of [0, 100]: what is left is whether a latent fires.
    assert np.abs(x).max() < 100 / 8
    by_hand = float(-(fires * np.log2(fires) + (1 - fires) * np.log2(1 - fires)).sum())
    for entry in ours.details["sae_bench"]:
        assert entry["description_length"] == pytest.approx(by_hand, rel=1e-5)
    assert "64 of 64 latents stay below 100" in ours.remarks[0]
    assert ours.remarks[1].startswith("No binning has an error below 0.01")
    assert ours.metrics["num_bins"] == 4.0
    assert ours.metrics["within_threshold"] == 0.0


def test_an_sae_that_never_fires_is_said_to_be_no_merit(
    study_context: BenchmarkContext, study_sae: StudySAE, saes: SimpleNamespace
) -> None:
    ours = measured("mdl", CONFIG, study_context, study_sae(saes.dead()))
    assert ours.metrics["description_length"] == 0.0
    assert ours.remarks[-1] == "No latent fires on these rows: 0 bits are no merit."


def test_what_was_substituted_is_there_again_afterwards(
    study_context: BenchmarkContext, study_sae: StudySAE, saes: SimpleNamespace
) -> None:
    cuda = torch.Tensor.cuda
    first = measured("mdl", CONFIG, study_context, study_sae(saes.random(1)))
    main = sys.modules["sae_bench.evals.mdl.main"]
    assert torch.Tensor.cuda is cuda
    assert main.ActivationsStore is ActivationsStore
    assert not hasattr(main, "config")
    assert "loguru" not in sys.modules
    assert measured("mdl", CONFIG, study_context, study_sae(saes.random(1))) == first


def test_an_sae_with_fewer_latents_than_are_kept_is_not_measured(
    study_context: BenchmarkContext, study_sae: StudySAE, saes: SimpleNamespace
) -> None:
    sae = study_sae(saes.random(1))
    many = CONFIG.model_copy(update={"k_values": [65]})
    with pytest.raises(NotMeasurable, match="It has 64 latents, and mdl keeps 65"):
        BENCHMARK.measure(sae, many, study_context, None)
    assert (num_held_out_sequences(CONFIG), num_steps(CONFIG)) == (4, 10 + 2 * 4)
