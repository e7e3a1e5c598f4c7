"""The `sparse_probing_sae_probes` benchmark: binary tasks of the package sae-probes, through sae-bench's own code.

The texts are inside the package (Kantamneni et al., arXiv 2502.16681): no hub is needed. A text is the activation at
its last token. Activations of the language model, and the probes on them that stand for the language model itself, are
computed once per task and hook, and kept.
"""

import csv
import functools
import io
import json
import math
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import zstandard
from pydantic import AfterValidator, JsonValue

from compute.code_version import CodeVersion
from evaluate.benchmarks.benchmark import Benchmark, Better, EvaluatedSAE, Measurement
from evaluate.benchmarks.context import BenchmarkContext
from evaluate.jackknife import as_arrays, standard_errors, without_one_task
from evaluate.substituted import attribute, quiet
from store.record import Record

if TYPE_CHECKING:
    from evaluate.sae_bench import StoredSAE

KS = (1, 2, 5)
"""sae-bench's default numbers of latents."""
SCORES = ("accuracy", "auc", "f1")
CHANCE = 0.5
NEAR_CHANCE_WITHIN = 0.02
_MODEL = "model"
"""What sae-probes calls the language model in the names of its files; the folder says which it is."""


def _known(names: list[str] | None) -> list[str] | None:
    if names is None:
        return None
    known = all_tasks()
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(
            f"expected binary tasks of the package sae-probes, each once, got {unknown or names}. They are "
            f"{', '.join(known)}"
        )
    return names


@functools.cache
def all_tasks() -> list[str]:
    """The binary tasks of the installed sae-probes, from its table: importing the package takes many seconds."""
    package = find_spec("sae_probes")
    if package is None or package.origin is None:
        raise ValueError("expected the package sae-probes, found none. Install requirements.txt")
    table = Path(package.origin).parent / "data" / "probing_datasets_MASTER.csv.zst"
    text = zstandard.ZstdDecompressor().stream_reader(table.read_bytes()).read().decode()
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["Data type"] == "Binary Classification"]
    return [row["Dataset save name"].split("/")[-1].split(".")[0] for row in rows]


class SaeProbesConfig(Record):
    """Settings of sae-bench's `sparse_probing_sae_probes`, under its names."""

    dataset_names: Annotated[list[str] | None, AfterValidator(_known)]
    """Which tasks. null: all 113."""
    llm_batch_size: int = 32
    """Texts that the language model reads at once."""
    random_seed: int = 42


@dataclass(frozen=True)
class SaeProbesSetUp:
    """What all SAEs share."""

    folders: dict[str, dict[str, Path]]
    """By hook and task: where its activations are kept."""
    language_model: dict[str, dict[str, dict[str, float]]]
    """By hook and task: test_acc, test_auc and test_f1 of probes on all channels of the language model."""


def task_names(config: SaeProbesConfig) -> list[str]:
    """The tasks, in their order."""
    return all_tasks() if config.dataset_names is None else config.dataset_names


def depends_on(config: SaeProbesConfig) -> dict[str, JsonValue]:
    """The version of the package that holds the texts."""
    del config
    return {"sae_probes": version("sae-probes")}


def prepare(config: SaeProbesConfig, context: BenchmarkContext) -> SaeProbesSetUp:
    """Activations of every task at every hook, and what probes on the language model's own channels reach."""
    folders: dict[str, dict[str, Path]] = {}
    baselines = {}
    for hook in context.hooks:
        folders[hook], found = {}, {}
        for task in task_names(config):
            inputs: dict[str, JsonValue] = {
                **BENCHMARK.version.identity("version"),
                **depends_on(config),
                "task": task,
                "hook": hook,
                "llm_batch_size": config.llm_batch_size,
                "random_seed": config.random_seed,
                "language_model": context.manifest.spec.model.identifying(),
                "compute_dtype": context.manifest.spec.compute_dtype,
                "device": context.device.type,
            }
            with context.kept.open("sparse_probing_sae_probes", inputs) as kept:
                if not kept.is_complete:
                    _fill(config, context, task, hook, kept.path)
                    kept.finish()
            folders[hook][task] = kept.path
            found[task] = json.loads((kept.path / "language_model.json").read_text())
            context.progress(1)
        baselines[hook] = found
    return SaeProbesSetUp(folders, baselines)


def _fill(config: SaeProbesConfig, context: BenchmarkContext, task: str, hook: str, folder: Path) -> None:
    """Activations of one task, and sae-probes' own baseline on them."""
    from sae_probes import generate_model_activations, run_baseline_evals

    bridge, process = context.language_model.bridge, generate_model_activations._process_activations

    def in_float32(*args: Any, **settings: Any) -> dict[str, Any]:  # noqa: ANN401 - sae-probes' signature
        return {name: rows.float() for name, rows in process(*args, **settings).items()}

    # sae-probes cuts texts at their beginning, and leaves the tokenizer set so. Its probes are scikit-learn's, which
    # cannot read bfloat16.
    with (
        quiet(),
        attribute(bridge.tokenizer, "truncation_side", bridge.tokenizer.truncation_side),
        attribute(generate_model_activations, "_process_activations", in_float32),
    ):
        generate_model_activations.ensure_dataset_activations(
            _MODEL, [task], [hook], folder, device=str(context.device), batch_size=config.llm_batch_size,
            max_seq_len=min(1024, context.language_model.max_positions), model=bridge,
        )  # fmt: skip
        results = folder / "baseline"
        run_baseline_evals(
            _MODEL, hook, "normal", results_path=results, model_cache_path=folder, datasets=[task],
            device=str(context.device), seed=config.random_seed,
        )  # fmt: skip
    (file,) = results.rglob("*.json")
    (entry,) = json.loads(file.read_text())
    shutil.rmtree(results)
    scores = {name: float(entry[name]) for name in ("test_acc", "test_auc", "test_f1")}
    (folder / "language_model.json").write_text(json.dumps(scores))


def measure(
    sae: EvaluatedSAE, config: SaeProbesConfig, context: BenchmarkContext, shared: SaeProbesSetUp
) -> Measurement:
    """Scores of probes on few latents, and of probes on all channels of the language model.

    Metrics: sae_top_k_test_accuracy, _auc and _f1 for k = 1, 2, 5 and llm_test_accuracy, _auc, _f1: means over tasks.
    Chance is 0.5. Standard errors are over tasks, from five on.
    """
    from evaluate.sae_bench import to_sae_bench

    adapted = to_sae_bench(sae.weights, sae.card, device=context.device)
    output = _sae_bench(adapted, config, context, shared.folders[sae.card.hook])
    by_task = {
        str(detail["dataset_name"]): {
            name: float(detail[name]) for name in BENCHMARK.metrics if name.startswith("sae_")
        }
        for detail in output["eval_result_details"]
    }
    if set(by_task) != set(task_names(config)):
        raise ValueError(f"expected results of {len(task_names(config))} tasks, got those of {', '.join(by_task)}")
    keys = {"accuracy": "test_acc", "auc": "test_auc", "f1": "test_f1"}
    for task, scores in shared.language_model[sae.card.hook].items():
        by_task[task] |= {f"llm_test_{score}": scores[key] for score, key in keys.items()}
    metrics = {
        name: math.fsum(scores[name] for scores in by_task.values()) / len(by_task) for name in BENCHMARK.metrics
    }
    left_out = without_one_task([by_task])
    return Measurement(
        metrics=metrics,
        basis={"tasks": len(by_task)},
        standard_errors=standard_errors(left_out),
        arrays=as_arrays(left_out),
        remarks=_remarks(metrics),
        details={"eval_result_details": cast("JsonValue", by_task)},
    )


def _sae_bench(
    sae: "StoredSAE", config: SaeProbesConfig, context: BenchmarkContext, folders: dict[str, Path]
) -> dict[str, Any]:
    """sae-bench's own result file of one SAE.

    In a folder of its own, with links to the kept activations: sae-probes takes results that are there as done.
    """
    from sae_bench.evals.sparse_probing_sae_probes.eval_config import SparseProbingSaeProbesEvalConfig
    from sae_bench.evals.sparse_probing_sae_probes.main import run_eval

    with tempfile.TemporaryDirectory(prefix="sae-probes-") as name, quiet():
        (Path(name) / f"model_activations_{_MODEL}").mkdir()
        for task, folder in folders.items():
            file = f"model_activations_{_MODEL}/{task}_{sae.cfg.hook_name}.pt"
            (Path(name) / file).symlink_to((folder / file).resolve())
        settings = SparseProbingSaeProbesEvalConfig(
            model_name=_MODEL,
            random_seed=config.random_seed,
            dataset_names=task_names(config),
            ks=list(KS),
            results_path=f"{name}/results",
            model_cache_path=name,
            include_llm_baseline=False,
        )
        found = run_eval(settings, [("sae", sae)], str(context.device), f"{name}/output", force_rerun=True)
        (output,) = found.values()
        return cast("dict[str, Any]", json.loads(json.dumps(output, default=str)))


def _remarks(metrics: dict[str, float]) -> tuple[str, ...]:
    accuracies = [metrics[f"sae_top_{k}_test_accuracy"] for k in KS]
    if all(abs(value - CHANCE) <= NEAR_CHANCE_WITHIN for value in accuracies):
        return ("Every probe on latents is at chance level, 0.5: the latents say nothing about the classes.",)
    if metrics["llm_test_accuracy"] < CHANCE + 2 * NEAR_CHANCE_WITHIN:
        return ("Probes on the language model itself are at chance level: these tasks are beyond this model.",)
    return ()


def _metrics() -> dict[str, Better]:
    found: dict[str, Better] = {f"sae_top_{k}_test_{score}": "higher" for k in KS for score in SCORES}
    return found | {f"llm_test_{score}": "neither" for score in SCORES}


BENCHMARK = Benchmark(
    name="sparse_probing_sae_probes",
    config=SaeProbesConfig,
    needs=frozenset({"language_model", "labelled_text"}),
    version=CodeVersion(
        number=2,
        files=(
            "evaluate/benchmarks/benchmark.py",
            "evaluate/benchmarks/context.py",
            "evaluate/benchmarks/sparse_probing_sae_probes.py",
            "evaluate/jackknife.py",
            "evaluate/loaded_model.py",
            "evaluate/sae_bench.py",
            "evaluate/substituted.py",
            "language_model/checkpoint.py",
            "language_model/families.py",
            "language_model/hooks.py",
            "language_model/load.py",
            "language_model/special_tokens.py",
            "language_model/structure.py",
            "language_model/tokenizer.py",
            "store/sae/weights.py",
        ),
        code_sha256="fd4fbc5796160f1f45b4c6e0d135e7843463814f50c10e81e3e2dd582a59ddd5",
    ),
    metrics=_metrics(),
    units="tasks",
    headlines=("sae_top_1_test_accuracy", "sae_top_5_test_accuracy"),
    measures="Accuracy of probes on 1, 2 or 5 latents in binary tasks on the last token of a text (the package "
    "sae-probes, through sae-bench).",
    prepare=prepare,
    measure=measure,
    depends_on=depends_on,
    num_steps=lambda config: 1,
)
