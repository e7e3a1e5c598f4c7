"""Documents from the standard library, local files and a hub, and what is said where a source is wrong."""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from harvest.text import BadText, open_text
from harvest.text_config import FilesText, HubText, StandardLibraryText
from language_model.standard_library import corpus_digest
from store.errors import MachineError

REPOSITORY = Path(__file__).parents[2]
HUB = {
    "kind": "hub",
    "dataset": "someone/stories",
    "config": None,
    "revision": "0123456789abcdef0123456789abcdef01234567",
    "split": "train",
    "column": "text",
}
READ_HUB = """
import json, sys
from harvest.text_config import HubText
from harvest.text import BadText, open_text
for settings in json.loads(sys.argv[1]):
    try:
        source = open_text(HubText.model_validate(settings))
        print(json.dumps([source.lineage, [document.text for document in source.documents()]]))
    except BadText as error:
        print(f"BadText: {error}")
"""


def documents(*paths: Path, column: str | None = None) -> list[tuple[str, str]]:
    config = FilesText(kind="files", paths=tuple(map(str, paths)), column=column)
    text = open_text(config)
    return [(text.parts[document.part].name, document.text) for document in text.documents()]


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def test_the_standard_library_says_which_python_and_which_text_it_is() -> None:
    source = open_text(StandardLibraryText(kind="standard-library"))
    assert source.lineage["python"] == platform.python_version()
    assert source.lineage["sha256"] == corpus_digest()
    assert "argparse" in str(source.lineage["modules"]).split()
    assert "all_feature_names" in next(source.documents()).text


def test_local_files_of_every_kind_are_read_in_turns(tmp_path: Path) -> None:
    jsonl = write(tmp_path / "b.jsonl", '{"story": "second"}\n{"story": "third", "n": 3}\n')
    parquet = write_parquet(tmp_path / "c.parquet", {"n": [1, 2, 3], "story": ["fourth", "", "sixth"]})
    text = write(tmp_path / "a.txt", "first\r\nline \u00e9")
    # Characters so far decide: 0 0 0, then 14 6 6 (b), 14 11 6 (c), 14 11 7 (c), 14 11 12 (b has ended).
    assert documents(text, jsonl, parquet, column="story") == [
        ("a.txt", "first\r\nline \u00e9"),
        ("b.jsonl", "second"),
        ("c.parquet", "fourth"),
        ("b.jsonl", "third"),
        ("c.parquet", ""),
        ("c.parquet", "sixth"),
    ]


def test_the_lineage_of_files_is_their_names_and_digests_and_not_their_folder(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.txt", "text")
    here, there = (
        open_text(FilesText(kind="files", paths=(str(tmp_path / folder / "a.txt"),))).lineage
        for folder in ("here", "there")
    )
    digest = hashlib.sha256(b"text").hexdigest()
    assert here == there == {"kind": "files", "column": None, "files": [{"name": "a.txt", "sha256": digest}]}
    assert str(tmp_path) not in json.dumps(here)


def test_a_missing_file_a_folder_and_an_empty_file_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.txt"
    with pytest.raises(BadText, match=r"expected a text file at .*missing.txt, found nothing. Correct harvest.text"):
        documents(missing)
    missing.mkdir()
    with pytest.raises(BadText, match=r"expected text files \(.txt, .*\) at .*missing.txt, found none"):
        documents(missing)
    with pytest.raises(BadText, match=r"expected text in .*empty.jsonl, found an empty file"):
        documents(write(tmp_path / "empty.jsonl", ""), column="text")


def test_text_that_is_not_utf8_is_refused_with_the_byte(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BadText, match=r"expected UTF-8 in .*latin.txt, found the byte 0xe9 at 3. Convert"):
        documents(tmp_path / "latin.txt")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "tea"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(BadText, match=r"expected UTF-8 in .*latin.jsonl:2, found the byte 0xe9 at 13"):
        documents(tmp_path / "latin.jsonl", column="text")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', r"expected a JSON object in .*a.jsonl:2, found other text \(Unterminated string"),
        ("", r"expected a JSON object in .*a.jsonl:2, found other text"),
        ("[1, 2]", r"expected a JSON object in .*a.jsonl:2, found list"),
        ('{"story": "x"}', r"expected a column 'text' in .*a.jsonl:2, found story. Correct the column"),
        ('{"text": null}', r"expected a string in column 'text' of .*a.jsonl:2, found NoneType"),
        ('{"text": 7}', r"expected a string in column 'text' of .*a.jsonl:2, found int"),
        ('{"text": "\\ud800"}', r"expected text in column 'text' of .*a.jsonl:2, found half a character"),
    ],
)
def test_a_bad_jsonl_line_is_named_by_file_and_number(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(BadText, match=message):
        documents(write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n{line}\n'), column="text")


def test_a_bad_parquet_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadText, match=r"expected a Parquet file with UTF-8 text at .*a.parquet, got: Parquet magic"):
        documents(write(tmp_path / "a.parquet", "this is no Parquet file"), column="text")
    stories = write_parquet(tmp_path / "b.parquet", {"story": ["x"], "n": [1]})
    with pytest.raises(BadText, match=r"expected a column 'text' in .*b.parquet, found story, n. Correct the column"):
        documents(stories, column="text")
    with pytest.raises(BadText, match=r"expected a string in column 'n' of .*b.parquet, row 1, found int"):
        documents(stories, column="n")
    holes = write_parquet(tmp_path / "c.parquet", {"text": ["x", "y", "z", None]})
    with pytest.raises(BadText, match=r"expected a string in column 'text' of .*c.parquet, row 4, found NoneType"):
        documents(holes, column="text")
    nothing = write_parquet(tmp_path / "d.parquet", {"text": pyarrow.array([], pyarrow.string())})
    with pytest.raises(BadText, match=r"expected rows in .*d.parquet, found none"):
        documents(nothing, column="text")
    (tmp_path / "e.parquet").write_bytes(stories.read_bytes().replace(b"PAR1\x15", b"PAR1\x00"))
    with pytest.raises(BadText, match=r"expected a Parquet file with UTF-8 text at .*e.parquet"):
        documents(tmp_path / "e.parquet", column="story")


def read_hub(endpoint: str, home: Path, *changes: dict[str, Any], offline: bool = False) -> list[str]:
    """What a fresh process prints for each change of `HUB`; fresh, as `datasets` reads the endpoint when imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-c", READ_HUB, json.dumps([HUB | change for change in changes])]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=True, timeout=200)
    return done.stdout.splitlines()


def test_a_hub_data_set_is_streamed_in_order_and_every_mistake_in_its_name_is_one_plain_message(
    hub: str, tmp_path: Path
) -> None:
    mistakes = {
        "'someone/nothing' doesn't exist on the Hub or cannot be accessed": {"dataset": "someone/nothing"},
        "Revision 'ffffffffffffffffffffffffffffffffffffffff' doesn't exist for dataset": {"revision": "f" * 40},
        "Bad split: test. Available splits: ['train']": {"split": "test"},
        "BuilderConfig 'english' not found. Available: ['default']": {"config": "english"},
        "expected a column 'story' in someone/stories (train), row 1, found text, length": {"column": "story"},
        "expected a string in column 'length' of someone/stories (train), row 1, found int": {"column": "length"},
    }
    chosen = {"filter": {"columns": {"length": 16}}, "shuffle": {"seed": 0, "window_documents": 3}}
    read, filtered, *refused = read_hub(hub, tmp_path, {}, chosen, *mistakes.values())
    lineage, stories = json.loads(read)
    lineage_of_chosen, of_length_16 = json.loads(filtered)
    assert sorted(of_length_16) == ["", "", "", "The first story."]  # three are left out, and counted
    assert lineage_of_chosen["shuffle"] == chosen["shuffle"]
    assert lineage_of_chosen["filter"] == chosen["filter"] | {"min_characters": None, "max_characters": None}
    assert lineage == HUB
    assert stories == [
        "The first story.",
        "The second one.",
        "",
        "A third, after an empty one.",
    ]
    assert len(refused) == len(mistakes)
    for message, printed in zip(mistakes, refused, strict=True):
        assert printed.startswith("BadText: ")
        assert message in printed


def test_a_hub_that_cannot_be_reached_is_one_plain_message(tmp_path: Path) -> None:
    (tmp_path / "owner" / "folder").mkdir(parents=True)
    unreachable, folder = read_hub("http://127.0.0.1:9", tmp_path, {}, {"dataset": "owner/folder"}, offline=True)
    assert "could not read the hub data set 'someone/stories' at 0123456789ab, split 'train'" in unreachable
    assert "HF_HUB_OFFLINE forbids to ask the hub: unset it where the hub can be reached" in unreachable
    assert not re.search(r"[a-z](Error|Exception|Enabled)\b", unreachable), unreachable  # no name of a library's layer
    # A local folder of the data set's name, which `datasets` would read without a word.
    assert "expected the hub data set 'owner/folder', but a local file or folder has that name" in folder


def test_what_a_library_says_of_a_hub_that_does_not_answer_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`datasets` asks five times, for half a minute; this is what it says then."""
    from harvest import hub as reader

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    for error, reason in (
        (
            FileNotFoundError(
                "Couldn't find any data file at /somewhere/someone/stories. Couldn't find 'someone/stories' on the "
                "Hugging Face Hub either: LocalEntryNotFoundError: An error happened while trying to locate the file"
            ),
            "the hub could not be reached at http://hub.example from this machine: no connection",
        ),
        (ConnectionError("Couldn't reach the Hub (SSLError)"), "the hub could not be reached at http://hub.example"),
        (ValueError("SomeLayerError: Bad split: test. Available splits: ['train']"), "'default': Bad split: test."),
    ):
        monkeypatch.setattr(reader, "hub_records", lambda _, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(BadText) as caught:
            list(reader.hub_texts(HubText.model_validate(HUB | {"config": "default"})))
        assert reason in str(caught.value)
        assert not re.search(r"[a-z](Error|Exception|Enabled)\b", str(caught.value))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name in ("plain", "marked"):
        (tmp_path / name).mkdir()
    write(tmp_path / "plain/a.txt", "text")
    write(tmp_path / "marked/a.txt", "\ufefftext")
    assert documents(tmp_path / "marked/a.txt") == documents(tmp_path / "plain/a.txt") == [("a.txt", "text")]
    write(tmp_path / "marked/b.jsonl", '\ufeff{"t": "\ufeffone"}\n{"t": "two"}\n')
    assert documents(tmp_path / "marked/b.jsonl", column="t") == [("b.jsonl", "\ufeffone"), ("b.jsonl", "two")]
    write(tmp_path / "marked/inside.txt", "one\ufefftwo")
    assert documents(tmp_path / "marked/inside.txt") == [("inside.txt", "one\ufefftwo")]


def test_a_cache_in_which_the_mark_was_a_token_is_another_cache(tmp_path: Path) -> None:
    """The lineage of a text without a mark is what it was; that of one with it says that it is left out."""
    plain, marked = write(tmp_path / "a.txt", "text"), write(tmp_path / "b.txt", "\ufefftext")
    config = FilesText(kind="files", paths=(str(plain), str(marked)))
    files = open_text(config).lineage["files"]
    assert files == [
        {"name": "a.txt", "sha256": hashlib.sha256(b"text").hexdigest()},
        {
            "name": "b.txt",
            "sha256": hashlib.sha256(b"\xef\xbb\xbftext").hexdigest(),
            "byte_order_mark": "left out",
        },
    ]


def test_a_parquet_file_that_the_machine_does_not_open_is_not_to_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(24, "Too many open files")

    path = write_parquet(tmp_path / "a.parquet", {"t": ["one"]})
    monkeypatch.setattr("pyarrow.parquet.ParquetFile", fail)
    with pytest.raises(MachineError, match=r"could not read .*a\.parquet: Too many open files. Raise the limit"):
        documents(path, column="t")
