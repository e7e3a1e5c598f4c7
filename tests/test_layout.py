"""The structure is what README.md and the design say: directions of imports, and a tree that tells the truth."""

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
STAGES = {"harvest", "train", "evaluate"}
MAY_IMPORT = {
    "store": set(),
    "language_model": {"store"},
    "harvest": {"store", "language_model"},
    "train": {"store", "language_model"},
    "evaluate": {"store", "language_model"},
}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(str(node.module).split(".")[0])
    return found


def test_stages_meet_only_in_files_that_the_store_owns() -> None:
    ours = {*MAY_IMPORT, "pipeline", "params"}
    for package, allowed in MAY_IMPORT.items():
        for path in sorted((ROOT / package).rglob("*.py")):
            strangers = (imports_of(path) & ours) - allowed - {package}
            assert not strangers, f"{path.relative_to(ROOT)} imports {', '.join(sorted(strangers))}"


def test_nothing_loads_pickles_or_runs_code_from_files() -> None:
    forbidden = {"pickle", "dill", "joblib", "marshal", "shelve"}
    for path in [*ROOT.glob("*.py"), *(p for package in MAY_IMPORT for p in (ROOT / package).rglob("*.py"))]:
        assert not imports_of(path) & forbidden, path
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not names & {"eval", "exec"}, path


def test_the_tree_in_the_readme_lists_every_file_and_no_other() -> None:
    readme = (ROOT / "README.md").read_text()
    (tree,) = re.findall(r"<!-- tree -->\n```\n(.*?)```", readme, flags=re.DOTALL)
    listed: set[str] = set()
    folder = ""
    for line in tree.splitlines():
        name = line.strip().split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            listed |= {name} if not folder else set()
        else:
            listed.add(folder + name)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    packages = tuple(f"{package}/" for package in MAY_IMPORT)
    expected = {
        name
        for name in tracked
        if (
            name.startswith(packages)
            and name.endswith(".py")
            and not name.endswith("__init__.py")
            and name.count("/") == 1
        )
        or ("/" not in name and not name.startswith(".") and name not in ("dvc.lock",))
    }
    in_packages = {name for name in listed if "/" not in name.rstrip("/") or name.startswith(packages)}
    assert {name for name in in_packages if not name.endswith("/")} == expected


def test_every_stage_has_one_name() -> None:
    dvc = (ROOT / "dvc.yaml").read_text()
    stages = re.findall(r"^  (\w+):", dvc, flags=re.MULTILINE)
    assert stages == ["language_model", "harvest", "train", "evaluate", "report"]
    for stage in stages:
        assert f"cmd: python pipeline.py {stage}" in dvc


def test_code_that_a_stage_depends_on_exists() -> None:
    for name in re.findall(r"^      - (\S+\.py)$", (ROOT / "dvc.yaml").read_text(), flags=re.MULTILINE):
        assert (ROOT / name).is_file() or "${" in name, name
