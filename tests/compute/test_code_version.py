"""The digest of code: what changes it, what does not, and what an edit does to a version."""

from pathlib import Path

import pytest

from compute import code_version
from compute.code_version import CodeVersion, code_digest


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: ANN201 - a function
    monkeypatch.setattr(code_version, "ROOT", tmp_path)

    def write(text: str, name: str = "steps/a.py") -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        code_digest.cache_clear()
        return code_digest(("steps",))

    yield write
    code_digest.cache_clear()


PLAIN = "def half(x):\n    return x / 2\n"


def test_comments_docstrings_and_layout_are_no_part_of_it(write) -> None:  # noqa: ANN001
    told = '"""Halves."""\n\n\ndef half(x):  # of a number\n    """x / 2."""\n    return (x /\n            2)\n'
    assert write(told) == write(PLAIN)


@pytest.mark.parametrize(
    "text",
    [
        "def half(x):\n    return x / 3\n",
        "def half(x):\n    return x // 2\n",
        "def half(x):\n    return x / 2.0\n",
        "def half(y):\n    return y / 2\n",
        "def half(x=1):\n    return x / 2\n",
        PLAIN + "A = 'text'\n",
    ],
)
def test_whatever_can_change_a_result_changes_it(write, text: str) -> None:  # noqa: ANN001
    assert write(text) != write(PLAIN)


def test_a_new_file_and_a_new_name_change_it(write) -> None:  # noqa: ANN001
    first = write(PLAIN)
    assert write(PLAIN, "steps/b.py") != first


def test_code_that_was_edited_has_a_digest_of_its_own_until_it_is_confirmed(write) -> None:  # noqa: ANN001
    confirmed = write(PLAIN)
    version = CodeVersion(number=2, files=("steps",), code_sha256=confirmed)
    assert version.edited() is None
    edited = write("def half(x):\n    return x / 3\n")
    assert version.edited() == edited
    assert CodeVersion(number=2, files=("steps",), code_sha256=edited).edited() is None


def test_a_file_that_is_not_there_is_named(write) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=r"expected Python code at steps/gone\.py, found none"):
        code_digest(("steps/gone.py",))
