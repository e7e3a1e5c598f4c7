"""Recognises sparse probing results that are no scores: chance level, from latents that do not vary. Pure functions."""

from collections.abc import Mapping
from typing import Any

from evaluate.report.findings import Finding

CHANCE = 0.5  # accuracy of a probe that sees nothing, on balanced classes
NEAR_CHANCE_WITHIN = 0.01


def probing_finding(name: str, result: Mapping[str, Any]) -> Finding | None:
    """Recognises a sparse probing result (sae-bench's file) at chance level, which is no score.

    None when some probe on latents is better than chance.
    """
    metrics = result["eval_result_metrics"]
    accuracies = _accuracies(metrics["sae"])
    for detail in result.get("eval_result_details", []):
        accuracies += _accuracies({key: value for key, value in detail.items() if key.startswith("sae_")})
    if not accuracies:
        raise ValueError(f"expected accuracies of probes on latents in the sparse probing result of {name}, got none")
    if any(abs(accuracy - CHANCE) > NEAR_CHANCE_WITHIN for accuracy in accuracies):
        return None
    num_sets = len(result.get("eval_result_details", []))
    llm = metrics["llm"]
    against = f"The language model's own activations reach {llm['llm_test_accuracy']:.4f} on the same task"
    if llm.get("llm_top_1_test_accuracy") is not None:
        against += f", and {llm['llm_top_1_test_accuracy']:.4f} from a single channel"
    if all(accuracy == CHANCE for accuracy in accuracies):
        return Finding(
            "warning",
            f"{name}: every sparse probing accuracy on latents is exactly {CHANCE}, on all {num_sets} data sets and "
            "for every number of latents. That is chance level, and exact equality means that the probes saw latents "
            f"that do not vary: constant or dead, as in an SAE that was never trained or never loaded. {against}, so "
            "the task is sound. These numbers say nothing about the method and are not scores.",
        )
    return Finding(
        "warning",
        f"{name}: sparse probing accuracies on latents are all within {NEAR_CHANCE_WITHIN} of {CHANCE}, chance level, "
        f"on {num_sets} data sets. {against}. The latents carry almost no information about the classes.",
    )


def _accuracies(metrics: Mapping[str, Any]) -> list[float]:
    return [float(value) for key, value in metrics.items() if key.endswith("accuracy") and value is not None]
