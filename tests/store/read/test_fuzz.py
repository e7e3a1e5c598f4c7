"""Arbitrary bytes: what the store writes it reads back, and what it did not write it refuses, cheaply and by name."""

import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from store.cache.manifest import FileRecord, Manifest, ShardRecord, parse_manifest
from store.codec.checksum import crc32c
from store.codec.names import CODEC_NAMES, CodecName
from store.codec.registry import decode_chunk, encode_chunk
from store.errors import StoreError
from store.files.local import LocalFiles, Mode
from store.lease import read_lease
from store.read.shard import ShardFile
from store.record import digest
from store.record_file import parse_record_file, record_bytes
from tests.store.cache_fixture import D_MODEL, HOOKS, rows_of

MEMORY_LIMIT = 32 * 2**20
quick = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "40")),
    deadline=None,  # the first example compiles; a hang meets pytest's timeout
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# Every bit pattern alike, and those where something is special: zeros, infinities, NaNs, subnormals, one exponent.
bit_patterns = st.one_of(
    st.integers(0, 2**16 - 1), st.sampled_from([0, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 1, 0x8001, 0x3F80])
)
row_shapes = st.tuples(st.integers(0, 20), st.integers(1, 9))
row_arrays = row_shapes.flatmap(lambda shape: arrays.arrays(np.uint16, shape, elements=bit_patterns))
json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=()), max_size=8),
        st.sampled_from([10**400, "../../x", "/etc/passwd", "", 2**40, 2**48, -1, 0, 1e308, "tokens", "\x00"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


@contextmanager
def little_memory() -> Iterator[None]:
    """Nothing here may cost more than a small file's parsing, whatever sizes the bytes claim."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY_LIMIT
    finally:
        tracemalloc.stop()


@contextmanager
def refusal_naming(what: str) -> Iterator[None]:
    """Either nothing is wrong, or it is an error of ours that says `what`."""
    try:
        yield
    except StoreError as error:
        if what not in str(error):
            raise AssertionError(f"expected {what!r} in {error}") from error


def mutated(data: bytes) -> st.SearchStrategy[bytes]:
    """A few bytes of `data` changed, removed or put in."""
    edits = st.lists(
        st.tuples(st.sampled_from("xid"), st.integers(0, max(0, len(data) - 1)), st.binary(min_size=1, max_size=8)),
        min_size=1,
        max_size=4,
    )

    def apply(chosen: list[tuple[str, int, bytes]]) -> bytes:
        result = bytearray(data)
        for kind, place, new in chosen:
            if kind == "x":
                result[place : place + len(new)] = new
            elif kind == "i":
                result[place:place] = new
            else:
                del result[place : place + len(new)]
        return bytes(result)

    return edits.map(apply)


@pytest.mark.parametrize("codec", CODEC_NAMES)
@quick
@given(rows=row_arrays, data=st.data())
def test_every_bit_pattern_and_shape_comes_back(codec: CodecName, rows: np.ndarray, data: st.DataObject) -> None:
    chunk = np.frombuffer(encode_chunk(codec, rows), dtype=np.uint8)
    num_taken = data.draw(st.integers(0, len(rows)))
    slots = np.asarray(data.draw(st.permutations(range(len(rows))))[:num_taken], dtype=np.int64)
    out = np.full((len(rows), rows.shape[1]), 0xABCD, dtype=np.uint16)
    decode_chunk(codec, chunk, rows.shape, out, slots)
    np.testing.assert_array_equal(out[slots], rows[:num_taken])
    untouched = np.setdiff1d(np.arange(len(rows)), slots)
    assert (out[untouched] == 0xABCD).all()


@pytest.mark.parametrize("codec", CODEC_NAMES)
@quick
@given(data=st.data())
def test_malformed_chunks_are_refused_or_decode_to_their_shape(codec: CodecName, data: st.DataObject) -> None:
    rows = rows_of(HOOKS[0], 1)
    valid = encode_chunk(codec, rows)
    chunk = data.draw(st.one_of(st.binary(max_size=200), mutated(valid)))
    out = np.zeros_like(rows)
    with little_memory(), refusal_naming("expected"):
        decode_chunk(codec, np.frombuffer(chunk, dtype=np.uint8), rows.shape, out, np.arange(len(rows)))


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _nodes(item, (*path, key))


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:  # noqa: ANN401
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(value[path[0]], path[1:], new)
    return copy


def _short(value: Any) -> Any:  # noqa: ANN401
    """Long lists of numbers cut, so that mutations hit other places too."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return value[:1] if isinstance(value, list) and value and isinstance(value[0], float) else value


@pytest.mark.parametrize("name", ["manifest.json", "shards/00001.json"])
@quick
@given(data=st.data())
def test_records_with_any_value_anywhere_are_refused_or_the_same_when_written(
    cache_folder: Path, name: str, data: st.DataObject
) -> None:
    value = json.loads((cache_folder / name).read_bytes())
    del value["self_sha256"]
    places = list(_nodes(_short(value)))
    changed = _replaced(value, data.draw(st.sampled_from(places)), data.draw(json_values))
    if isinstance(changed, dict):
        changed["self_sha256"] = digest(changed)
    written = (json.dumps(changed, sort_keys=True, indent=1) + "\n").encode()
    parse = _parser(name)
    with little_memory(), refusal_naming("a/file"):
        assert record_bytes(parse(written)) == written


@pytest.mark.parametrize("name", ["manifest.json", "shards/00001.json"])
@quick
@given(data=st.data())
def test_records_of_any_bytes_are_refused(cache_folder: Path, name: str, data: st.DataObject) -> None:
    valid = (cache_folder / name).read_bytes()
    chosen = data.draw(st.one_of(st.binary(max_size=200), mutated(valid), st.integers(0, 900).map(lambda n: b"[" * n)))
    with little_memory(), refusal_naming("a/file"):
        assert record_bytes(_parser(name)(chosen)) == valid


def _parser(name: str) -> Callable[[bytes], Manifest | ShardRecord]:
    if name == "manifest.json":
        return lambda data: parse_manifest(data, where="a/file")
    return lambda data: parse_record_file(ShardRecord, data, where="a/file")


@quick
@given(data=st.data())
def test_shards_of_any_bytes_and_any_index_are_refused_or_decode_to_their_shape(
    cache_folder: Path, tmp_path: Path, data: st.DataObject
) -> None:
    valid = (cache_folder / HOOKS[0] / "c/0/0").read_bytes()
    numbers = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2 * len(valid)), st.just(2**64 - 1))
    index = np.asarray(data.draw(st.lists(numbers, min_size=6, max_size=6)), dtype="<u8").tobytes()
    shard = data.draw(st.sampled_from(["bytes", "mutated", "index"]))
    mode: Mode = data.draw(st.sampled_from(["mmap", "pread"]))
    if shard == "index":  # by somebody who knows about checksums
        content = valid[:-52] + index + crc32c((index,))
    else:
        content = data.draw(mutated(valid) if shard == "mutated" else st.binary(min_size=1, max_size=200))
    path = tmp_path / "shard"
    path.write_bytes(content)
    out = np.zeros((32, D_MODEL), dtype=np.uint16)
    with little_memory():
        for chunk in range(3):
            with refusal_naming(str(path)):
                file = ShardFile(
                    LocalFiles(tmp_path, mode=mode), "shard", FileRecord(nbytes=len(content), sha256="0" * 64),
                    codec="bf16_planes_v1", chunk_shape=(32, D_MODEL), num_chunks=3,
                )  # fmt: skip
                file.decode(chunk, out, np.arange(32))


@quick
@given(content=st.one_of(st.binary(max_size=100), json_values.map(lambda value: json.dumps(value).encode())))
def test_leases_of_any_bytes_are_nobodys(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".lease").mkdir(exist_ok=True)
    (tmp_path / ".lease/000001.json").write_bytes(content)
    assert read_lease(tmp_path) is None
