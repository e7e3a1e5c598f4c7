"""No code of a checkpoint, a tokenizer or a data set is ever run: every call that could says that it must not."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.imports import ROOT, files_of, packages

LOADERS = ("from_pretrained", "boot_transformers", "load_dataset", "load_dataset_builder", "from_config", "pipeline")
"""Functions that fetch or build something and would run what its repository brings along."""
ALLOWED: dict[str, str] = {}
"""Calls that need not say so, as file:function, with the reason."""


def calls_that_trust(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(function, line) of every call of a loader that does not pass trust_remote_code=False itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = [word.value for word in node.keywords if word.arg == "trust_remote_code"]
            refuses = len(given) == 1 and isinstance(given[0], ast.Constant) and given[0].value is False
            if name in LOADERS and not refuses:
                yield name, node.lineno


def test_every_call_that_could_run_foreign_code_refuses_it() -> None:
    benchmarks = [path.relative_to(ROOT) for path in (ROOT / "benchmarks").glob("*.py")]
    for path in [Path("params.py"), Path("pipeline.py"), *files_of(*packages()), *benchmarks]:
        for name, line in calls_that_trust(ast.parse((ROOT / path).read_text())):
            assert f"{path}:{name}" in ALLOWED, f"{path}:{line}: {name} without trust_remote_code=False"


def test_the_calls_that_are_known_are_found() -> None:
    found = {name for path in files_of(*packages()) for name in loaders_in(path)}
    assert {"from_pretrained", "boot_transformers", "load_dataset_builder"} <= found


def loaders_in(path: Path) -> set[str]:
    calls = [node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Call)]
    return {node.func.attr for node in calls if isinstance(node.func, ast.Attribute)} & set(LOADERS)


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("AutoConfig.from_pretrained(folder)", [1]),
        ("AutoConfig.from_pretrained(folder, trust_remote_code=True)", [1]),
        ("AutoConfig.from_pretrained(folder, trust_remote_code=trusted)", [1]),
        ("AutoConfig.from_pretrained(folder, **settings)", [1]),
        ("x = 1\nload_dataset(name)", [2]),
        ("AutoConfig.from_pretrained(folder, trust_remote_code=False)", []),
    ],
)
def test_only_false_in_so_many_words_is_a_refusal(code: str, lines: list[int]) -> None:
    assert [line for _, line in calls_that_trust(ast.parse(code))] == lines
