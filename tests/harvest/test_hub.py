"""A hub data set is read as `datasets` reads it, and a reader that leaves early leaves no thread behind."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet

ROOT = Path(__file__).parents[2]
README = b"""---
configs:
- config_name: short
  data_files: short/*.parquet
- config_name: long
  data_files:
  - split: train
    path: [long/b.parquet, long/a.parquet]
  - split: test
    path: long/c.parquet
- config_name: columns
  data_files: long/*.parquet
  columns: [text]
- config_name: filtered
  data_files: long/*.parquet
  filters: [[length, ">", 4]]
---
"""
COMMON = """
import itertools, json, os, sys, threading
import datasets
import torch  # `datasets` does at the first stream: once, before the forks
from harvest import hub
from harvest.text_config import HubText

def settings(config, split):
    return HubText(kind="hub", dataset="someone/stories", config=config, split=split, column="text",
                   revision="0123456789abcdef0123456789abcdef01234567")
"""
COMPARE = """
for config, split in json.loads(sys.argv[1]):
    here = list(hub.hub_records(settings(config, split)))
    there = list(datasets.load_dataset("someone/stories", name=config, split=split, streaming=True,
                                       revision="0123456789abcdef0123456789abcdef01234567"))
    print(json.dumps([here, there]))
try:
    hub.hub_records(settings("filtered", "train"))
except ValueError as error:
    print(error)
"""
LEAVE = """
readers, plain_xopen = set(), hub.xopen

def watched(path, mode):
    file = plain_xopen(path, mode)
    plain_read = file.read
    file.read = lambda *arguments: readers.add(threading.get_native_id()) or plain_read(*arguments)
    return file

hub.xopen = watched
codes = []
for _ in range(int(sys.argv[1])):
    child = os.fork()  # a process that need not import everything again; it ends as any other
    if child == 0:
        taken = list(itertools.islice(hub.hub_records(settings(None, "train")), 3))
        assert [record["length"] for record in taken] == [0, 1, 2], taken
        assert readers == {threading.get_native_id()}, readers
        sys.exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(codes)
"""


def parquet(texts: list[str], *, row_group_size: int = 2) -> bytes:
    file = io.BytesIO()
    schema = pyarrow.schema({"text": pyarrow.string(), "length": pyarrow.int64()})
    table = pyarrow.table({"text": texts, "length": [*range(len(texts))]}, schema=schema)
    pyarrow.parquet.write_table(table, file, row_group_size=row_group_size)
    return file.getvalue()


def run(program: str, argument: str, *, endpoint: str, home: Path) -> list[str]:
    """The lines that a fresh process prints; fresh, as `datasets` reads the endpoint when it is imported."""
    home.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-c", COMMON + program, argument]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_records_and_their_order_are_those_of_datasets_for_every_configuration_and_split(
    hub_of: Callable[[dict[str, bytes]], str], tmp_path: Path
) -> None:
    files = {
        "README.md": README,
        "short/2.parquet": parquet(["two", "three", "four"]),
        "short/1.parquet": parquet(["one"]),
        "long/a.parquet": parquet([f"a {number}" for number in range(2500)], row_group_size=1100),
        "long/b.parquet": parquet(["b"]),
        "long/c.parquet": parquet(["c"]),
    }
    asked = [("short", "train"), ("long", "train"), ("long", "test"), ("columns", "train")]
    *compared, refused = run(COMPARE, json.dumps(asked), endpoint=hub_of(files), home=tmp_path)
    here = {}
    for place, line in zip(asked, compared, strict=True):
        here[place], there = json.loads(line)
        assert here[place] == there, place
    assert [record["text"] for record in here["short", "train"]] == ["one", "two", "three", "four"]
    assert len(here["long", "train"]) == 2501
    assert here["long", "test"] == [{"text": "c", "length": 0}]
    assert here["columns", "train"][0] == {"text": "a 0"}
    assert "expected a configuration that reads all rows, found one with filters" in refused
    # Another type of file is none of our reader's.
    lines = {"data/train.jsonl": b'{"text": "first"}\n{"text": "second"}\n'}
    compared = run(COMPARE, json.dumps([["default", "train"]]), endpoint=hub_of(lines), home=tmp_path / "home")
    assert json.loads(compared[0]) == [[{"text": "first"}, {"text": "second"}]] * 2


def test_a_reader_that_leaves_after_three_records_read_in_its_own_thread_and_its_process_ends_well(
    hub_of: Callable[[dict[str, bytes]], str], tmp_path: Path
) -> None:
    # 300 row groups: a reader that reads ahead is far from done when the process ends.
    file = parquet(["word " * 200 + str(number) for number in range(3000)], row_group_size=10)
    printed = run(LEAVE, "10", endpoint=hub_of({"data/train.parquet": file}), home=tmp_path)
    assert printed == [str([0] * 10)]
