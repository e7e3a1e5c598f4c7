"""Labelled passages made from the sources of Python's standard library.

Passages come from all source files, so an SAE that was trained on the standard library has seen most of them; their
labels it has not.
"""

import ast
import io
import tokenize
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Literal

from evaluate.labelled.config import UnusableLabels
from language_model.standard_library import documents

LIBRARIES = ("asyncio", "email", "importlib", "multiprocessing", "unittest")
"""Packages with many files, on subjects that differ."""
PASSAGE_LINES = 6
"""Lines of a passage of a library; overlapping none."""
LEAST_CHARACTERS = 80
"""Of a passage: shorter ones say little."""
MOST_CHARACTERS = 600
"""Of a passage: what is behind is beyond the context in any case."""


def passages(task: Literal["library", "part"]) -> dict[str, list[str]]:
    """Passages by class, in the order of the sources."""
    return _by_library() if task == "library" else _by_part()


def _by_library() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, text in documents():
        library = name.split("/")[0]
        if library in LIBRARIES:
            lines = [line for line in text.splitlines() if line.strip()]
            starts = range(0, len(lines) - PASSAGE_LINES + 1, PASSAGE_LINES)
            found[library] += _kept("\n".join(lines[start : start + PASSAGE_LINES]) for start in starts)
    return dict(found)


def _by_part() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"code": [], "comment": [], "docstring": []}
    for _, text in documents():
        for part, passage in _parts(text):
            found[part].append(passage)
    return found


def libraries_and_parts(libraries: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """(library, part, passage) of some libraries. A ValueError names those that are not there."""
    seen = set()
    for name, text in documents():
        library = name.split("/")[0]
        if library in libraries:
            seen.add(library)
            for part, passage in _parts(text):
                yield library, part, passage
    if unknown := sorted(set(libraries) - seen):
        raise UnusableLabels(f"expected libraries of the standard library, got {', '.join(unknown)}. Correct the names")


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """(part, passage) of one source file."""
    docstrings = _docstrings(ast.parse(text))
    comments = _comments(text)
    for docstring in _kept(docstring for docstring, _ in docstrings):
        yield "docstring", docstring
    for comment in _kept(comment for comment, _ in comments):
        yield "comment", comment
    taken = {line for _, lines in (*docstrings, *comments) for line in lines}
    lines = [line for number, line in enumerate(text.splitlines(), 1) if number not in taken and line.strip()]
    starts = range(0, len(lines) - PASSAGE_LINES + 1, PASSAGE_LINES)
    for passage in _kept("\n".join(lines[start : start + PASSAGE_LINES]) for start in starts):
        yield "code", passage


def _kept(passages: Iterator[str]) -> list[str]:
    return [passage[:MOST_CHARACTERS] for passage in passages if len(passage) >= LEAST_CHARACTERS]


def _docstrings(tree: ast.Module) -> list[tuple[str, range]]:
    """Every docstring with its lines."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring is not None:
                first = node.body[0]
                found.append((docstring, range(first.lineno, (first.end_lineno or first.lineno) + 1)))
    return found


def _comments(text: str) -> list[tuple[str, range]]:
    """Every block of lines that are comments and nothing else, without its marks, with its lines."""
    blocks: list[tuple[list[str], int, int]] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT or token.line.lstrip()[:1] != "#":
            continue
        line, words = token.start[0], token.string.lstrip("#").strip()
        if blocks and blocks[-1][2] == line - 1:
            texts, first, _ = blocks[-1]
            blocks[-1] = ([*texts, words], first, line)
        else:
            blocks.append(([words], line, line))
    return [("\n".join(texts), range(first, last + 1)) for texts, first, last in blocks]
