"""Local files: folders, patterns, compression, filters, long files in pieces, and files that change meanwhile."""

import gzip
import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from harvest.files import BadText, check_text, find_files
from harvest.interleave import Document
from harvest.text import TextSource, open_text
from harvest.text_config import FilesText, MixtureText


def config(*paths: Path | str, **settings: Any) -> FilesText:  # noqa: ANN401 - settings of any type
    return FilesText.model_validate({"kind": "files", "paths": [str(path) for path in paths]} | settings)


def texts(text: TextSource) -> list[tuple[str, str]]:
    return [(text.parts[d.part].name, d.text) for d in text.documents() if not d.is_left_out]


def read(*paths: Path | str, **settings: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - settings of any type
    return texts(open_text(config(*paths, **settings)))


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_a_folder_and_a_pattern_mean_their_files_sorted_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b.txt", "a/z.md", "a/y.txt", "c.jsonl", "picture.png", ".hidden.txt"):
        write(tmp_path / "texts" / name, lines({"t": name}) if name.endswith("jsonl") else name)
    expected = ["a/y.txt", "a/z.md", "b.txt", "c.jsonl"]
    assert [file.name for file in find_files(config(tmp_path / "texts", column="t"))] == expected
    assert "files of other kinds below" in (said := capsys.readouterr().err)
    assert ".png" in said
    assert sorted(read(tmp_path / "texts", column="t")) == [(name, name) for name in expected]
    assert [name for name, _ in read(tmp_path / "texts/**/*.txt")] == ["a/y.txt", "b.txt"]
    assert [name for name, _ in read(tmp_path / "texts/[ab]*.txt")] == ["b.txt"]


def test_paths_that_mean_nothing_or_something_twice_or_of_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "one.txt", "one")
    write(tmp_path / "table.csv", "a,b")
    for given, message in {
        (str(tmp_path / "no*.txt"),): r"expected text files .* at .*no\*\.txt, found none",
        (str(one), str(tmp_path / "*.txt")): r"expected every file once .* found .*one\.txt twice",
        (str(tmp_path / "table.csv"),): r"expected a text file that ends in \.txt, \.md, .* got .*table\.csv",
        (str(tmp_path / "*"),): r"expected .* to match files that end in .*, found .*table\.csv. Narrow the pattern",
    }.items():
        with pytest.raises(BadText, match=message):
            check_text(config(*given))
    table = write(tmp_path / "t.jsonl", lines({"t": "x"}))
    with pytest.raises(BadText, match=r"expected harvest.text.column for .jsonl and .parquet files such as .*t\.jsonl"):
        check_text(config(table))
    with pytest.raises(BadText, match=r"expected no harvest.text.column for .txt and .md files, got 't'"):
        check_text(config(one, column="t"))
    with pytest.raises(BadText, match=r"expected no filter.columns beside .*one\.txt, which has no columns"):
        check_text(config(one, table, column="t", filter={"columns": {"n": 1}}))
    with pytest.raises(BadText, match=r"expected split_characters with .txt or .md files, found none"):
        check_text(config(table, column="t", split_characters=100))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_of_every_kind_are_read_as_plain_ones(tmp_path: Path, suffix: str) -> None:
    def compress(data: bytes) -> bytes:
        one = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
        return one(data[:9]) + one(data[9:])  # in two frames, as log rotation and `cat` make them

    pyarrow.parquet.write_table(pyarrow.table({"t": ["five", "six"]}), tmp_path / "plain.parquet")
    written = [
        write(tmp_path / f"a.txt{suffix}", compress("\ufeffone, caf\u00e9".encode())),
        write(tmp_path / f"b.md{suffix}", compress(b"# two, and more")),
        write(tmp_path / f"c.jsonl{suffix}", compress(lines({"t": "three"}, {"t": "four"}).encode())),
        write(tmp_path / f"d.parquet{suffix}", compress((tmp_path / "plain.parquet").read_bytes())),
    ]
    assert sorted(text for _, text in read(*written, column="t")) == sorted(
        ["one, caf\u00e9", "# two, and more", "three", "four", "five", "six"]
    )
    assert read(tmp_path / f"*.txt{suffix}", split_characters=100) == [(f"a.txt{suffix}", "one, caf\u00e9")]
    digest = hashlib.sha256(written[0].read_bytes()).hexdigest()
    assert open_text(config(written[0])).lineage["files"] == [
        {"name": f"a.txt{suffix}", "sha256": digest, "byte_order_mark": "left out"}
    ]
    cut = write(tmp_path / f"cut.txt{suffix}", written[0].read_bytes()[:-5])
    with pytest.raises(BadText, match=r"expected whole (gzip|zstd) data in .*cut\.txt.*Compress it again"):
        read(cut)
    with pytest.raises(BadText, match=r"expected whole (gzip|zstd) data in .*no\.txt"):
        read(write(tmp_path / f"no.txt{suffix}", "this is not compressed, whatever its name says"))


def test_a_long_file_becomes_documents_cut_at_empty_lines_lines_or_spaces(tmp_path: Path) -> None:
    paragraphs = [f"{number} " + "word " * (number % 7) for number in range(100)]
    text = "\n\n".join(paragraphs) + "\n" + "x" * 250 + " end"
    pieces = [piece for _, piece in read(write(tmp_path / "book.txt", text), split_characters=100)]
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 100
    assert pieces[0].endswith("\n\n")
    assert [len(piece) for piece in pieces[-3:-1]] == [100, 100]  # no place to cut
    lineage = open_text(config(tmp_path / "book.txt", split_characters=100)).lineage
    assert lineage["split_characters"] == 100


def test_pieces_do_not_depend_on_how_much_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.md", "\ufeff" + "na\u00efve caf\u00e9 \U0001f600\n" * 300)
    whole = read(path, split_characters=150)
    for nbytes in (3, 64, 1001):
        monkeypatch.setattr("harvest.formats._READ_BYTES", nbytes)
        assert read(path, split_characters=150) == whole
    (tmp_path / "bad.md").write_bytes("\ufeffna\u00efve ".encode() * 50 + b"\xff")
    for nbytes in (3, 64, 1001):
        monkeypatch.setattr("harvest.formats._READ_BYTES", nbytes)
        with pytest.raises(BadText, match=rf"expected UTF-8 in .*bad\.md, found the byte 0xff at {50 * 10}\."):
            read(tmp_path / "bad.md", split_characters=150)


def test_filters_leave_documents_out_and_count_them(tmp_path: Path) -> None:
    records = [
        {"t": "short", "language": "en", "score": 1},
        {"t": "long enough", "language": "en", "score": 1},
        {"t": "long enough too", "language": "fr", "score": 1},
        {"t": "much, much too long for it", "language": "en", "score": 1},
        {"t": "right again", "language": "en", "score": 1},
        {"t": "of another score", "language": "en", "score": True},
    ]
    chosen = {"min_characters": 6, "max_characters": 20, "columns": {"language": "en", "score": 1}}
    table = write(tmp_path / "a.jsonl", lines(*records))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records[:5]), tmp_path / "a.parquet")
    for path in (table, tmp_path / "a.parquet"):
        text = open_text(config(path, column="t", filter=chosen))
        assert [wanted for _, wanted in texts(text)] == ["long enough", "right again"]
        assert sum(document.is_left_out for document in text.documents()) == (4 if path == table else 3)
        assert text.lineage["filter"] == chosen
    with pytest.raises(BadText, match=r"expected a column 'topic' in .*a\.jsonl:1, found t, language, score"):
        read(table, column="t", filter={"columns": {"topic": "x"}})
    with pytest.raises(BadText, match=r"expected a column 'topic' in .*a\.parquet, found t, language, score"):
        read(tmp_path / "a.parquet", column="t", filter={"columns": {"topic": "x"}})


def test_a_column_inside_another_is_one_plain_error(tmp_path: Path) -> None:
    nested = {"meta": {"text": "inside", "n": 1}}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([nested]), tmp_path / "a.parquet")
    for path in (write(tmp_path / "a.jsonl", lines(nested)), tmp_path / "a.parquet"):
        with pytest.raises(
            BadText, match=r"column 'meta' of .*, found dict with text, n: only a column of its own can"
        ):
            read(path, column="meta")
        with pytest.raises(BadText, match=r"expected a column 'meta.text' in .*, found meta"):
            read(path, column="meta.text")


def test_a_file_that_vanishes_or_changes_while_it_is_read_is_one_plain_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines(*({"t": str(n)} for n in range(9))))
    text = open_text(config(path, column="t"))
    assert len(texts(text)) == 9
    text.check_unchanged()
    documents = text.documents()
    next(documents)
    with path.open("a") as file:
        file.write(lines({"t": "added"}))
    with pytest.raises(BadText, match=r"expected .*a\.jsonl to stay as it was while it is read, but it was changed"):
        list(documents)
    with pytest.raises(BadText, match=r"to stay as it was while it is read"):
        text.check_unchanged()
    path.unlink()
    with pytest.raises(BadText, match=r"expected .*a\.jsonl to stay while it is read, but it was removed"):
        list(text.documents())


def test_a_file_of_the_same_size_and_another_time_is_another_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one")
    text = open_text(config(path))
    write(path, "two")
    os.utime(path, ns=(0, 1))
    with pytest.raises(BadText, match="but it was changed"):
        list(text.documents())


def test_a_mixture_gives_characters_by_weight_and_names_its_sources(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", lines(*({"t": name * 10} for _ in range(300))))
    mixture = MixtureText.model_validate(
        {
            "kind": "mixture",
            "sources": [
                {"kind": "files", "paths": [str(tmp_path / "a.jsonl")], "column": "t", "weight": 3.0},
                {"kind": "files", "paths": [str(tmp_path / "b.jsonl")], "column": "t", "shuffle": {"seed": 1}},
            ],
        }
    )
    text = open_text(mixture)
    first = Counter(name for name, _ in texts(text)[:200])
    assert first == {"a.jsonl": 150, "b.jsonl": 50}
    assert text.sources == ("a.jsonl, weight 3", "b.jsonl, weight 1")
    sources = text.lineage["sources"]
    assert isinstance(sources, list)
    assert [source["weight"] for source in sources] == [3.0, 1.0]  # type: ignore[index, call-overload]
    assert sources[1]["shuffle"] == {"seed": 1, "window_documents": 10_000}  # type: ignore[index, call-overload]
    assert [part.source for part in text.parts] == [0, 1]


def test_a_shuffle_reads_files_in_another_order_and_is_part_of_the_lineage(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path / f"{number:02d}.txt", str(number))

    def order(**settings: Any) -> list[int]:  # noqa: ANN401 - settings of any type
        return [int(text) for _, text in read(tmp_path / "*.txt", **settings)]

    assert order() == list(range(30))
    mixed = order(shuffle={"seed": 0, "window_documents": 10})
    assert mixed == order(shuffle={"seed": 0, "window_documents": 10})
    assert sorted(mixed) == list(range(30)) != mixed
    assert max(mixed[:10]) > 15  # files from all over, not the first window of them
    assert order(shuffle={"seed": 1, "window_documents": 10}) != mixed
    unshuffled = open_text(config(tmp_path / "*.txt")).lineage
    assert unshuffled["order"] == "files in turns by characters read, 32 at once"
    assert "shuffle" not in unshuffled


def test_the_last_document_of_a_file_says_that_it_is_the_last(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines({"t": "x"}, {"t": ""}))
    documents = list(open_text(config(path, column="t")).documents())
    assert documents == [Document(0, "x"), Document(0, "", num_documents_of_part=2)]
