"""The gemma-2-2b profile has sae-bench's standard settings, and whatever is not sae-bench's is known by name."""

import dataclasses
from typing import Any

import pytest
from ruamel.yaml import YAML
from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig
from sae_bench.evals.mdl.eval_config import MDLEvalConfig
from sae_bench.evals.meta_structure.eval_config import MetaStructureEvalConfig
from sae_bench.evals.ravel.eval_config import RAVELEvalConfig
from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig
from sae_bench.sae_bench_utils.activation_collection import LLM_NAME_TO_BATCH_SIZE

from tests.imports import ROOT

FULL_BATCH = LLM_NAME_TO_BATCH_SIZE["gemma-2-2b"]
STANDARD: dict[str, tuple[Any, dict[str, Any]]] = {
    "meta_structure": (MetaStructureEvalConfig(), {}),
    "mdl": (MDLEvalConfig(), {}),
    # Its main programs set the batch by the language model, and divide it for longer texts or backward passes.
    "absorption": (AbsorptionEvalConfig(), {"llm_batch_size": FULL_BATCH}),
    "ravel": (RAVELEvalConfig(), {"llm_batch_size": FULL_BATCH // 4}),
    "unlearning": (UnlearningEvalConfig(llm_batch_size=0), {"llm_batch_size": FULL_BATCH // 8}),
}
OURS = {"min_model_parameters", "min_latents", "data_revision", "forget_corpus"}
LEFT_OUT = {
    "model_name", "llm_dtype",  # those of the cache
    "dataset_name", "context_length",  # mdl: the held-out rows
    "artifact_dir", "train_mdas", "force_dataset_recompute",  # ravel: a folder, no SAE at all, and no effect
    "intervention_method", "n_batch_loss_added", "target_metric", "save_metrics",  # unlearning: one value works
}  # fmt: skip


@pytest.mark.parametrize("name", STANDARD)
def test_the_gemma_profile_has_the_standard_settings(name: str) -> None:
    settings = YAML(typ="safe").load(ROOT / "params.yaml")["profiles"]["gemma-2-2b"]["evaluate"][name]
    config, changed = STANDARD[name]
    standard = dataclasses.asdict(config) | changed
    assert {key: value for key, value in settings.items() if key not in OURS} == {
        key: value for key, value in standard.items() if key not in LEFT_OUT
    }
