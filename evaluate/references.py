"""sae-bench's own result files in `references/`: published results."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from store.atomic import read_json
from store.errors import StoreError
from store.identity import ModelIdentity

PROBING = "sparse_probing"


class SaeBenchFile(BaseModel):
    """What is read of a result file of sae-bench. It is not ours: other versions have other keys beside these."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    eval_type_id: str
    """The benchmark."""
    eval_config: dict[str, Any]
    eval_result_metrics: dict[str, dict[str, Any]]
    """By category, then by metric; some are null."""
    eval_result_details: list[dict[str, Any]] | None = None
    """For each data set."""
    sae_cfg_dict: dict[str, Any] = Field(default_factory=dict)
    sae_lens_release_id: str = ""
    sae_lens_id: str = ""


@dataclass(frozen=True)
class Reference:
    """One published result."""

    name: str
    """Of its file, without the ending."""
    file: SaeBenchFile

    @property
    def benchmark(self) -> str:
        """sae-bench's name of it."""
        return self.file.eval_type_id

    @property
    def model_name(self) -> str:
        """The language model, as it is named there."""
        return str(self.file.eval_config.get("model_name") or self.file.sae_cfg_dict.get("model_name") or "")

    @property
    def hook(self) -> str:
        """Where the SAE reads."""
        return str(self.file.sae_cfg_dict.get("hook_name") or "")

    @property
    def sae(self) -> str:
        """The SAE, as it is named there."""
        return " ".join(filter(None, (self.file.sae_lens_release_id, self.file.sae_lens_id))) or self.name

    @property
    def metrics(self) -> dict[str, float]:
        """All numbers by name; what is null or no number is left out."""
        return {
            name: float(value)
            for category in self.file.eval_result_metrics.values()
            for name, value in category.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }


def read_references(folder: Path | None) -> list[Reference]:
    """All result files of a folder in the order of their names; none where there is no folder.

    Raises:
        StoreError: names a file that is no result file of sae-bench.
    """
    if folder is None:
        return []
    return [_read(path) for path in sorted(folder.glob("*.json"))]


def _read(path: Path) -> Reference:
    advice = "Put a file there that sae-bench wrote, or remove it"
    try:
        reference = Reference(path.stem, SaeBenchFile.model_validate(read_json(path)))
    except ValidationError as error:
        where = ", ".join(".".join(map(str, problem["loc"])) or "its form" for problem in error.errors())
        raise StoreError(f"expected a result file of sae-bench at {path}, but {where} is wrong. {advice}") from error
    if not reference.metrics:
        raise StoreError(f"expected numbers in eval_result_metrics of {path}, found none. {advice}")
    if reference.benchmark == PROBING:
        categories = reference.file.eval_result_metrics
        accuracy = categories.get("llm", {}).get("llm_test_accuracy")
        if "sae_test_accuracy" not in categories.get("sae", {}) or not isinstance(accuracy, float):
            raise StoreError(f"expected accuracies of probes on latents and on the language model in {path}. {advice}")
    return reference


def same_model(reference: Reference, model: ModelIdentity) -> bool:
    """Whether both name the same language model, with its owner or without."""
    return _short(reference.model_name) == _short(model.name)


def _short(name: str) -> str:
    return name.rstrip("/").split("/")[-1].lower()
