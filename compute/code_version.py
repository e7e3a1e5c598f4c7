"""Versions of code that decides results, and whether the code is still what its version stands for.

A version is a number that is raised by hand when the same inputs give other results. Because people forget, a digest of
the code stands beside it. While the two do not fit, results made by earlier code are not reused: whatever is made is
kept apart under the digest of the code that made it, until the number is raised or the digest is confirmed as harmless.
"""

import ast
import functools
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class CodeVersion:
    """A version, the files that it speaks of, and their digest when somebody last looked."""

    number: int
    """Raised by hand when the same inputs give other results."""
    files: tuple[str, ...]
    """Files and folders that decide the result, relative to the repository."""
    code_sha256: str
    """`code_digest` of the files, confirmed by hand: with this code, results are those of `number`."""

    def identity(self, name: str) -> dict[str, int | str]:
        """What a key of results holds of the version: its number as `name`, and the code where it was edited since."""
        edited = self.edited()
        return {name: self.number} if edited is None else {name: self.number, f"edited_code_of_{name}": edited}

    def edited(self) -> str | None:
        """The digest of the code as it is now, where it is not the confirmed one; else None."""
        now = code_digest(self.files)
        return None if now == self.code_sha256 else now


def tell_if_edited(version: CodeVersion, *, stage: str, where: str) -> None:
    """Says on stderr that results of the version as it was are not reused, and what to do about it."""
    edited = version.edited()
    if edited is not None:
        print(
            f"{stage}: the code that decides results was edited since version {version.number} was last confirmed in "
            f"{where}: nothing that other code made is reused. Raise its number if results change, or confirm the code "
            f"there with code_sha256={edited!r}",
            file=sys.stderr,
        )


def python_files(names: tuple[str, ...]) -> list[Path]:
    """The Python files that are named or lie below what is named, relative to the repository, each once."""
    found: set[Path] = set()
    for name in names:
        path = ROOT / name
        inside = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        if not inside or not all(file.is_file() for file in inside):
            raise ValueError(f"expected Python code at {name}, found none. Correct the list of files of the version")
        found |= {file.relative_to(ROOT) for file in inside if file.name != "__init__.py"}
    return sorted(found)


@functools.cache
def code_digest(names: tuple[str, ...]) -> str:
    """SHA-256 (hex) over what the files mean to Python: comments, docstrings and layout are no part of it."""
    running = hashlib.sha256()
    for path in python_files(names):
        running.update(f"{path.as_posix()}\n{_spelled(ast.parse((ROOT / path).read_bytes()))}\n".encode())
    return running.hexdigest()


def _spelled(node: object) -> str:
    """A syntax tree in words that do not depend on the version of Python: without fields that are empty.

    A confirmed digest is left out: it may stand in a file that it speaks of.
    """
    if isinstance(node, list):
        return f"[{' '.join(_spelled(item) for item in node if not _is_left_out(item))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []) and name != "kind")
    return f"({type(node).__name__} {' '.join(f'{name}={_spelled(value)}' for name, value in fields)})"


def _is_left_out(node: object) -> bool:
    """Whether it is a statement that is nothing but a string, such as a docstring, or a confirmed digest."""
    if isinstance(node, ast.keyword):
        return node.arg == "code_sha256"
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
