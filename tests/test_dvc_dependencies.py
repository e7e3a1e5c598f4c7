"""dvc.yaml names all code that a stage can run, and no code that it cannot: computed from the imports."""

import ast
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from evaluate.benchmarks.registry import BENCHMARKS
from tests.imports import ROOT, closure, files_of, imported_files, module_file, packages

STAGES = ["language_model", "harvest", "train", "evaluate", "report"]
WAIVED = {
    "evaluate/reference_check.py": "compares results that are there already, by hand, and leaves nothing",
    "evaluate/references.py": "evaluate uses it for that only; the report depends on all of evaluate",
    "params.py": "DVC tracks the settings themselves, and the first stage checks them",
}
"""Code that a stage runs and DVC need not track, with the reason."""
DECLARED = frozenset({Path("evaluate/benchmarks"), Path("evaluate/labelled")})
"""Other stages than evaluate use what benchmarks declare and call none of their functions: what is imported inside
these is left out."""


@cache
def stages() -> dict[str, dict]:  # type: ignore[type-arg]
    return YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]


def code_dependencies(stage: str) -> set[str]:
    """What dvc.yaml names of our packages, a line for each benchmark."""
    names = stages()[stage]["deps"]
    benchmarks = stages()[stage].get("matrix", {}).get("benchmark", [""])
    spelled = {name.replace("${item.benchmark}", benchmark) for name in names for benchmark in benchmarks}
    return {name for name in spelled if name.split("/")[0] in packages()}


def code_run_by(stage: str) -> set[Path]:
    """All files of ours that a stage can import, lazy imports and the registry of benchmarks included."""
    program = ast.parse((ROOT / "pipeline.py").read_text())
    functions = {node.name: node for node in program.body if isinstance(node, ast.FunctionDef)}
    modules: set[str] = set()
    waiting, seen = [stage], set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for node in ast.walk(functions[name]):
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                modules.add(node.module)
            elif isinstance(node, ast.Name) and node.id in functions and node.id not in seen:
                waiting.append(node.id)
    starts = {file for module in modules if (file := module_file(module)) is not None and str(file) not in WAIVED}
    return closure(starts, at_the_top=frozenset() if stage == "evaluate" else DECLARED)


def covered(path: Path, names: set[str]) -> bool:
    return any(path == Path(name) or Path(name) in path.parents for name in names)


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_that_a_stage_imports_is_among_its_dependencies(stage: str) -> None:
    names = code_dependencies(stage)
    missing = sorted(str(path) for path in code_run_by(stage) if not covered(path, names) and str(path) not in WAIVED)
    assert not missing, f"dvc.yaml: {stage} lacks {', '.join(missing)}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_no_code_that_it_never_imports(stage: str) -> None:
    run = code_run_by(stage)
    for name in code_dependencies(stage):
        if (ROOT / name).suffix in (".py", ""):
            files = [path for path in files_of(*packages()) if path == Path(name) or Path(name) in path.parents]
            assert not files or any(path in run for path in files), f"dvc.yaml: {stage} never imports {name}"


def test_every_benchmark_that_runs_has_its_cell_in_the_matrix() -> None:
    assert list(stages()["evaluate"]["matrix"]["benchmark"]) == list(BENCHMARKS)
    assert {f"results/{name}" for name in BENCHMARKS} <= set(stages()["report"]["deps"])


def test_the_imports_that_decide_are_found() -> None:
    """The graph would be empty, and every test above green, if imports inside functions were missed."""
    assert Path("train/steps/analytic.py") in code_run_by("train")
    assert Path("evaluate/benchmarks/core.py") in code_run_by("evaluate")
    assert Path("store/files/remote.py") in imported_files(Path("store/files/open.py"))
