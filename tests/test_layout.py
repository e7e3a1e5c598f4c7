"""The structure is what README.md and CONTRIBUTING.md say: directions of imports, and lists that tell the truth."""

import ast
import re
import subprocess
from pathlib import Path

from tests.imports import ROOT, circles, files_of, imported_modules, packages

MAY_IMPORT = {
    "store": set(),
    "language_model": {"store"},
    "compute": {"store"},
    "harvest": {"store", "language_model", "compute"},
    "train": {"store", "language_model", "compute"},
    "evaluate": {"store", "language_model", "compute"},
}
STAGES = ["language_model", "harvest", "train", "evaluate", "report"]


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in names.split("\0") if name and (ROOT / name).exists()]


def test_stages_meet_only_in_files_that_the_store_owns() -> None:
    ours = {*MAY_IMPORT, "pipeline", "params", "command_line"}
    for package in packages():
        for path in files_of(package):
            found = {module.split(".")[0] for module in imported_modules(path)} & ours
            wrong = found - MAY_IMPORT[package] - {package}
            assert not wrong, f"{path} imports {', '.join(sorted(wrong))}"


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles() == []


def test_nothing_loads_pickles_or_runs_code_from_files() -> None:
    forbidden = {"pickle", "dill", "joblib", "marshal", "shelve"}
    for path in [Path("command_line.py"), Path("params.py"), Path("pipeline.py"), *files_of(*packages())]:
        assert not {module.split(".")[0] for module in imported_modules(path)} & forbidden, path
        names = {node.id for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Name)}
        assert not names & {"eval", "exec"}, path


def test_the_tree_in_the_readme_lists_the_packages_and_all_else_at_the_top() -> None:
    (tree,) = re.findall(r"<!-- tree -->\n```\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    listed = [line.split()[0] for line in tree.splitlines()]
    top = {
        path.parts[0] + ("/" if len(path.parts) > 1 else "") for path in tracked() if not path.parts[0].startswith(".")
    }
    assert sorted(listed) == sorted(top - {"dvc.lock"})


def test_every_package_lists_its_files_in_its_docstring() -> None:
    for path in (path for path in files_of(*packages()) if path.name == "__init__.py"):
        docstring = ast.get_docstring(ast.parse((ROOT / path).read_text()))
        assert docstring is not None, f"{path} has no docstring"
        listed = re.findall(r"^(\S+\.py|\S+/)  ", docstring, flags=re.MULTILINE)
        inside = [found.relative_to(path.parent) for found in tracked() if path.parent in found.parents]
        names = {found.parts[0] + ("/" if len(found.parts) > 1 else "") for found in inside}
        expected = {name for name in names if name.endswith((".py", "/")) and name != "__init__.py"}
        assert sorted(listed) == sorted(expected), path


def test_a_package_s_docstring_is_all_that_its_init_holds() -> None:
    for path in (path for path in files_of(*packages()) if path.name == "__init__.py"):
        assert len(ast.parse((ROOT / path).read_text()).body) == 1, f"{path} holds code"


def test_every_stage_has_one_name() -> None:
    dvc = (ROOT / "dvc.yaml").read_text()
    assert re.findall(r"^  (\w+):", dvc, flags=re.MULTILINE) == STAGES
    for stage in STAGES:
        assert f"cmd: python pipeline.py {stage}" in dvc


def test_code_that_a_stage_depends_on_exists() -> None:
    for name in re.findall(r"^      - (\S+\.py|[a-z_]+/\S+)$", (ROOT / "dvc.yaml").read_text(), flags=re.MULTILINE):
        assert (ROOT / name).exists() or "${" in name or name.startswith(("data/", "results/")), name
