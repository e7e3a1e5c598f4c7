"""Labelled data sets: read, checked, divided, and identified by what they hold."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import TypeAdapter, ValidationError

from evaluate.labelled.config import FilesLabels, HubLabels, Labels, LabelsList, StandardLibraryLabels, UnusableLabels
from evaluate.labelled.files import read
from evaluate.labelled.standard_library import LEAST_CHARACTERS, LIBRARIES, MOST_CHARACTERS, passages
from evaluate.labelled.texts import identity, load, missing, split

ROWS = [("a cat", "pet"), ("a wolf", "wild"), ('says "moo", twice', "pet"), ("two\nlines", "wild")]
BY_LABEL = {"pet": ["a cat", 'says "moo", twice'], "wild": ["a wolf", "two\nlines"]}


def write(path: Path) -> Path:
    if path.suffix == ".csv":
        path.write_text('text,label\na cat,pet\na wolf,wild\n"says ""moo"", twice",pet\n"two\nlines",wild\n')
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"label": label, "text": text}) for text, label in ROWS) + "\n\n")
    else:
        texts, labels = zip(*ROWS, strict=True)
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels, "other": [1, 2, 3, 4]}), path)
    return path


def labels_of(path: Path, **changes: str) -> FilesLabels:
    return FilesLabels(kind="files", name="animals", path=str(path), **changes)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_texts_and_labels_of_a_persons_own_file_are_read(tmp_path: Path, form: str) -> None:
    assert read(labels_of(write(tmp_path / f"animals.{form}"))) == BY_LABEL


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "text,label\n", r"expected a file of the form .csv, .jsonl, .parquet .* got .*a\.txt\. Convert it"),
        ("a.csv", "words,label\na,b\n", r"expected a column 'text' in row 1 of .*, found words, label. Correct text_"),
        ("a.csv", "text,label\n ,b\n", r"expected text as text in row 1 of .*, got str"),
        ("a.csv", 'text,label\n"open,b\n', r"expected rows of commas and quotes in .*a.csv: unexpected end"),
        ("a.jsonl", '{"text": "x", "label": "y"}\n{"text"\n', r"expected JSON in line 2 of .*a.jsonl"),
        ("a.jsonl", "[1]\n", r"expected an object in line 1 of .*a.jsonl, got list"),
        ("a.jsonl", '{"text": "x", "label": 1.5}\n', r"expected a string or a whole number as label in row 1"),
        ("a.jsonl", '{"text": null, "label": "b"}\n', r"expected text as text in row 1 of .*, got nothing"),
        ("a.parquet", "no parquet", r"expected a whole Parquet file at .*a.parquet"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_place(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UnusableLabels, match=message):
        read(labels_of(tmp_path / name))


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\ncaf\xe9,b\n")
    with pytest.raises(UnusableLabels, match=r"expected UTF-8 in .*a\.csv, found another byte at"):
        read(labels_of(tmp_path / "a.csv"))


def test_a_data_set_is_divided_into_equally_many_texts_that_do_not_overlap() -> None:
    by_class = {"a": [f"a{number}" for number in range(20)], "b": [f"b{number}" for number in range(30)]}
    texts = split("numbers", by_class, train_size=16, test_size=8, seed=0)
    assert {name: (len(texts.train[name]), len(texts.test[name])) for name in "ab"} == {"a": (8, 4), "b": (8, 4)}
    assert not set(texts.train["a"]) & set(texts.test["a"])
    shuffled = {name: list(reversed(found)) for name, found in by_class.items()}
    assert split("numbers", shuffled, train_size=16, test_size=8, seed=0) == texts
    assert split("numbers", by_class, train_size=16, test_size=8, seed=1) != texts


@pytest.mark.parametrize(
    ("by_class", "message"),
    [
        ({"a": ["x"] * 50}, "expected at least two classes in numbers, got a"),
        ({"a": ["x"] * 50, "b": list("abcdefghijklmn")}, r"expected at least 12 different texts of class 'a' .* got 1"),
        ({"a": list("abcdefghijkl"), "b": list("abcdefghijkl")}, "expected every text of numbers under one label"),
    ],
)
def test_too_few_classes_or_texts_and_texts_under_two_labels_are_refused(
    by_class: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(UnusableLabels, match=message):
        split("numbers", by_class, train_size=16, test_size=8, seed=0)


def test_a_file_is_identified_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    first = labels_of(write(tmp_path / "animals.csv"))
    (tmp_path / "copy.csv").write_bytes((tmp_path / "animals.csv").read_bytes())
    assert identity(labels_of(tmp_path / "copy.csv")) == identity(first)
    with (tmp_path / "copy.csv").open("a") as file:
        file.write("a hen,pet\n")
    assert identity(labels_of(tmp_path / "copy.csv")) != identity(first)
    assert missing(first) == ""
    assert missing(labels_of(tmp_path / "gone.csv")) == f"The data set animals is not at {tmp_path / 'gone.csv'}."


@pytest.mark.parametrize(("task", "classes"), [("library", set(LIBRARIES)), ("part", {"code", "comment", "docstring"})])
def test_the_standard_library_gives_enough_passages_of_every_class(task: str, classes: set[str]) -> None:
    found = passages(task)  # type: ignore[arg-type]
    assert set(found) == classes
    for texts in found.values():
        assert len(set(texts)) >= 300
        assert all(LEAST_CHARACTERS <= len(text) <= MOST_CHARACTERS for text in texts)


def test_code_comments_and_docstrings_are_told_apart() -> None:
    found = passages("part")
    lines = [line.lstrip() for text in found["code"] for line in text.splitlines()]
    assert sum(line.startswith("#") for line in lines) < 0.005 * len(lines)  # inside strings
    assert any(text.startswith("Return a shallow copy of") or "Return" in text for text in found["docstring"])
    loaded = load(StandardLibraryLabels(kind="standard-library", task="part"), train_size=400, test_size=200, seed=42)
    assert {name: len(texts) for name, texts in loaded.train.items()} == dict.fromkeys(found, 200)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected at least one data set, each name once, got"),
        ([{"kind": "files", "name": "a", "path": "x.csv"}] * 2, r"each name once, got \['a', 'a'\]"),
        ([{"kind": "files", "name": "a/b", "path": "x.csv"}], "expected a name of letters, digits, - and _, got 'a/b'"),
        ([{"kind": "hub", "name": "somebody/else"}], "expected one of LabHC/bias_in_bios_class_set1, .* got somebody"),
        ([{"kind": "hub", "name": "codeparrot/github-code"}], "without running its author's code"),
        ([{"kind": "standard-library", "task": "mood"}], "Input should be 'library' or 'part'"),
    ],
)
def test_a_wrong_data_set_in_the_settings_is_refused(value: list[object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(LabelsList).validate_python(value)


def test_a_hub_data_set_is_identified_by_name_and_revision() -> None:
    labels: Callable[..., Labels] = HubLabels
    known = labels(kind="hub", name="fancyzhx/ag_news", revision="a" * 40)
    assert identity(known) == {"kind": "hub", "name": "fancyzhx/ag_news", "revision": "a" * 40}
