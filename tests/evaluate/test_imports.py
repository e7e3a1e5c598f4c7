"""Directions inside evaluate/, and that comparing and reporting load none of the libraries that run language models."""

from pathlib import Path

from tests.imports import closure, files_of, imported_modules

SLOW_LIBRARIES = {"sae_bench", "sae_lens", "transformer_lens", "transformers", "datasets"}


def test_the_report_imports_the_comparison_and_never_the_reverse() -> None:
    assert Path("evaluate/compare/seeds.py") in closure(files_of("evaluate/report"))
    assert not closure(files_of("evaluate/compare")) & set(files_of("evaluate/report"))


def test_the_report_imports_no_benchmark_and_no_library_that_runs_language_models() -> None:
    files = closure(files_of("evaluate/report", "evaluate/compare"))
    assert not files & {Path("evaluate/benchmarks/core.py"), Path("evaluate/benchmarks/geometry.py")}
    for path in files:
        assert not {module.split(".")[0] for module in imported_modules(path)} & SLOW_LIBRARIES, path
