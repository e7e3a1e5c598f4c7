"""What the files of this repository import from each other, read from their text: nothing is imported to find out."""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("compute", "evaluate", "harvest", "language_model", "store", "train")


def packages() -> list[str]:
    """The packages that are there."""
    return [name for name in PACKAGES if (ROOT / name).is_dir()]


def files_of(*names: str) -> list[Path]:
    """All Python files of packages, relative to the root."""
    return sorted(path.relative_to(ROOT) for name in names for path in (ROOT / name).rglob("*.py"))


def module_file(module: str) -> Path | None:
    """The file of one of our modules, relative to the root; None for anybody else's."""
    path = Path(*module.split("."))
    if (ROOT / path).with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (ROOT / path / "__init__.py").is_file() else None


@cache
def imported_modules(path: Path, *, at_the_top: bool = False) -> frozenset[str]:
    """Every module that a file names in an import, wherever the import stands: at the top, in a function, for types.

    `at_the_top`: only those that are imported with the file.
    """
    found = set()
    tree = ast.parse((ROOT / path).read_text())
    for node in tree.body if at_the_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {module for module in below if module_file(module) is not None}
            found |= modules or {node.module}
    return frozenset(found)


def imported_files(path: Path, *, at_the_top: bool = False) -> set[Path]:
    """Our files that a file imports; a package's __init__ holds words only and is left out."""
    files = {module_file(module) for module in imported_modules(path, at_the_top=at_the_top)}
    return {file for file in files if file is not None and file.name != "__init__.py"} - {path}


def closure(starts: Iterable[Path], *, at_the_top: frozenset[Path] = frozenset()) -> set[Path]:
    """The files themselves and all that they import, directly or through others.

    `at_the_top`: folders of whose files only what is imported with them counts.
    """
    seen: set[Path] = set()
    waiting = list(starts)
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += imported_files(path, at_the_top=path.parent in at_the_top)
    return seen


def circles() -> list[list[Path]]:
    """Groups of files that import each other, directly or through others."""
    files = [*files_of(*packages()), Path("command_line.py"), Path("params.py"), Path("pipeline.py")]
    below = {path: closure(imported_files(path)) for path in files}
    groups = {frozenset([path, *(other for other in below[path] if path in below.get(other, set()))]) for path in files}
    return [sorted(group) for group in groups if len(group) > 1]
