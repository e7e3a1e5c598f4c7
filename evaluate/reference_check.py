"""`pipeline.py evaluate --check-reference`: our accuracies of the language model itself against published ones.

Both are of probes on the same texts and the same language model, with no SAE in between: so they must agree, whatever
was trained. sae-bench's data sets are drawn by a seed; what may differ is rounding, and library versions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from evaluate.references import PROBING, Reference, read_references, same_model
from evaluate.results import BenchmarkResult, read_result
from store.cache.manifest import Manifest
from store.errors import StoreError

LEAST_TOLERANCE = 0.01
STANDARD_ERRORS = 3.0
METRICS = ("llm_test_accuracy", "llm_top_1_test_accuracy", "llm_top_2_test_accuracy", "llm_top_5_test_accuracy")
SETTINGS = ("random_seed", "probe_train_set_size", "probe_test_set_size", "context_length")
TOLERANCE = (
    f"{STANDARD_ERRORS:g} standard errors of the difference of two accuracies on that many test texts, and at least "
    f"{LEAST_TOLERANCE:g}"
)
_SUFFIX = "_results"
"""sae-bench puts it behind the names of data sets."""


@dataclass(frozen=True)
class Comparison:
    """One accuracy of ours and the published one."""

    dataset: str
    metric: str
    published: float
    ours: float
    tolerance: float

    @property
    def is_right(self) -> bool:
        """Whether they agree within the tolerance."""
        return abs(self.ours - self.published) <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok" if self.is_right else "DIFFERS"
        return (
            f"{self.dataset}, {self.metric}: published {self.published:.4f}, ours {self.ours:.4f}, difference "
            f"{self.ours - self.published:+.4f}, allowed {self.tolerance:.4f}: {verdict}"
        )


def check_references(references_folder: Path, *, results_folder: Path, manifest: Manifest) -> list[str]:
    """Compares with every published sparse probing result that is of our language model.

    Args:
        references_folder: `references/`.
        results_folder: `results/sparse_probing`.
        manifest: of the activation cache, which says what language model ours are of.

    Returns:
        what was compared, a line each, and that all of it agrees.

    Raises:
        StoreError: there is nothing to compare, with the reason; or accuracies differ by more than the tolerance.
    """
    references = [item for item in read_references(references_folder) if item.benchmark == PROBING]
    if not references:
        raise StoreError(
            f"expected a published result of {PROBING} in {references_folder}, found none. Put one there: a result "
            "file that sae-bench wrote"
        )
    ours = [read_result(path) for path in sorted(results_folder.glob("*.json")) if not path.name.startswith("_")]
    if not ours:
        raise StoreError(
            f"expected results of {PROBING} in {results_folder}, found none. Run pipeline.py evaluate --benchmark "
            f"{PROBING} first"
        )
    lines, wrong = [], 0
    refused = []
    for reference in references:
        result, reason = _comparable(reference, ours, manifest)
        if result is None:
            refused.append(f"{reference.name}: {reason}")
            continue
        compared = compare(reference, result)
        wrong += sum(not item.is_right for item in compared)
        lines += [f"{reference.name} against {result.variant}", *map(str, compared), *_left_out(reference, result)]
    if not lines:
        raise StoreError(f"expected results of ours that a published one can be compared with. {' '.join(refused)}")
    lines += [f"Not compared. {sentence}" for sentence in refused]
    if wrong:
        raise StoreError(
            "\n".join(lines)
            + f"\nexpected the language model's accuracies to be the published ones within {TOLERANCE}; "
            f"{wrong} are not. The language model, its hook or the texts are not the published ones"
        )
    return [*lines, f"The language model's accuracies are the published ones, within {TOLERANCE}."]


def _comparable(
    reference: Reference, ours: Sequence[BenchmarkResult], manifest: Manifest
) -> tuple[BenchmarkResult | None, str]:
    """A result of the same language model, hook and settings; else why there is none. No SAE is in these numbers."""
    model = manifest.spec.model
    if not same_model(reference, model):
        return None, f"it is of {reference.model_name}, and ours of {model.name}. Evaluate on {reference.model_name}."
    hooks = sorted({str(result.inputs.get("hook")) for result in ours})
    at_hook = [result for result in ours if result.inputs.get("hook") == reference.hook]
    if not at_hook:
        return None, f"it is at {reference.hook}, and ours at {', '.join(hooks)}. Train one SAE there (train.hook)."
    config = reference.file.eval_config
    settings = cast("Mapping[str, Any]", at_hook[0].inputs["settings"])
    wanted = {name: config.get(name) for name in SETTINGS} | {"llm_dtype": config.get("llm_dtype")}
    found = {name: settings.get(name) for name in SETTINGS} | {"llm_dtype": at_hook[0].inputs.get("compute_dtype")}
    differing = [f"{name} {found[name]}, there {wanted[name]}" for name in wanted if wanted[name] != found[name]]
    if differing:
        return None, f"ours have other settings: {', '.join(differing)}. Set evaluate.{PROBING} as there."
    if not set(_by_dataset(reference)) & set(_ours(at_hook[0])):
        return None, f"ours are on other data sets: {', '.join(_ours(at_hook[0]))}."
    return at_hook[0], ""


def compare(reference: Reference, result: BenchmarkResult) -> list[Comparison]:
    """Every accuracy on every data set that both have, and their means over these."""
    published, ours = _by_dataset(reference), _ours(result)
    shared = [name for name in published if name in ours]
    texts = {name: _num_test_texts(result, name) for name in shared}
    compared = []
    for metric in METRICS:
        pairs = [
            (name, float(published[name][metric]), float(ours[name][metric]))
            for name in shared
            if published[name].get(metric) is not None
        ]
        if not pairs:
            continue
        compared += [
            Comparison(name, metric, there, here, _tolerance([there], [texts[name]])) for name, there, here in pairs
        ]
        means = [math.fsum(column) / len(pairs) for column in zip(*(pair[1:] for pair in pairs), strict=True)]
        tolerance = _tolerance([pair[1] for pair in pairs], [texts[pair[0]] for pair in pairs])
        compared.append(Comparison(f"mean of {len(pairs)} data sets", metric, means[0], means[1], tolerance))
    return compared


def _tolerance(accuracies: Sequence[float], texts: Sequence[int]) -> float:
    """Of the mean of accuracies on so many texts each."""
    variances = [2.0 * value * (1.0 - value) / count for value, count in zip(accuracies, texts, strict=True)]
    return max(LEAST_TOLERANCE, STANDARD_ERRORS * math.sqrt(math.fsum(variances)) / len(accuracies))


def _num_test_texts(result: BenchmarkResult, dataset: str) -> int:
    by_class = cast("Mapping[str, Any]", result.details["eval_result_unstructured"])[dataset]
    settings = cast("Mapping[str, Any]", result.inputs["settings"])
    return len(by_class["llm_test_accuracy"]) * int(settings["probe_test_set_size"])


def _by_dataset(reference: Reference) -> dict[str, dict[str, Any]]:
    details = reference.file.eval_result_details or []
    return {str(detail.get("dataset_name")).removesuffix(_SUFFIX): detail for detail in details}


def _ours(result: BenchmarkResult) -> dict[str, dict[str, Any]]:
    return cast("dict[str, dict[str, Any]]", result.details["eval_result_details"])


def _left_out(reference: Reference, result: BenchmarkResult) -> list[str]:
    missing = [name for name in _by_dataset(reference) if name not in _ours(result)]
    return [f"Not among ours, and left out: {', '.join(missing)}"] if missing else []
