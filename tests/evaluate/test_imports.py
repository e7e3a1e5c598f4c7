"""Directions inside evaluate/, and that comparing and reporting load none of the libraries that run language models."""

import subprocess
import sys
from pathlib import Path

from tests.imports import ROOT, closure, files_of

SLOW_LIBRARIES = {"sae_bench", "sae_lens", "transformer_lens", "transformers", "datasets"}


def test_the_report_imports_the_comparison_and_never_the_reverse() -> None:
    assert Path("evaluate/compare/seeds.py") in closure(files_of("evaluate/report"))
    assert not closure(files_of("evaluate/compare")) & set(files_of("evaluate/report"))


def test_the_report_loads_no_library_that_runs_language_models() -> None:
    program = "import sys; import evaluate.report.page; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(loaded.stdout.split()) & SLOW_LIBRARIES
