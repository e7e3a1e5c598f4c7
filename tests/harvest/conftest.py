"""What several tests of the harvest need: the settings of a small one, and a hub on the loopback interface."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import pyarrow
import pyarrow.parquet
import pytest

DATASET, REVISION = "someone/stories", "0123456789abcdef0123456789abcdef01234567"
TEXTS = [["The first story.", "The second one."], ["", "A third, after an empty one."]]


@pytest.fixture
def harvest_settings() -> dict[str, Any]:
    """As they stand in params.yaml: 7 rows a sequence, 8 sequences a shard, 20 training sequences."""
    return {
        "text": {"kind": "standard-library"},
        "hooks": ["blocks.1.hook_resid_post"],
        "num_rows": 20 * 7,
        "num_held_out_sequences": 3,
        "held_out_fraction": 0.25,
        "context_length": 8,
        "forward_batch_sequences": 4,
        "sequences_per_chunk": 2,
        "chunks_per_shard": 4,
        "codec": "bf16_planes_v1",
    }


@pytest.fixture
def hub(hub_of: Callable[[dict[str, bytes]], str], tmp_path: Path) -> str:
    """The address of a hub that holds `DATASET` at `REVISION`: a split of two Parquet files, with `TEXTS`."""
    files = {}
    for number, texts in enumerate(TEXTS):
        path = tmp_path / f"train-0000{number}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "length": [len(text) for text in texts]}), path)
        files[f"data/{path.name}"] = path.read_bytes()
    return hub_of(files)


@pytest.fixture
def hub_of() -> Iterator[Callable[[dict[str, bytes]], str]]:
    """Starts a hub that holds `DATASET` at `REVISION` with these files, by path; gives its address."""
    started: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(files: dict[str, bytes]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"files": files}))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        started.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in started:
        server.shutdown()
        server.server_close()
        thread.join()


class HubHandler(BaseHTTPRequestHandler):
    """The endpoints that `datasets` asks when it streams: the data set, its revisions, folders and files."""

    files: ClassVar[dict[str, bytes]]
    """By path in the repository."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        api, tree = f"api/datasets/{DATASET}", f"api/datasets/{DATASET}/tree/{REVISION}"
        name = path.removeprefix(f"datasets/{DATASET}/resolve/{REVISION}/")
        if path in (api, f"{api}/revision/{REVISION}"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer_json({"id": DATASET, "sha": REVISION, "siblings": siblings, "private": False})
        elif path.startswith(tree) and (entries := self.children(path.removeprefix(tree).strip("/"))):
            self.answer_json(entries)
        elif name in self.files:
            self.answer_file(self.files[name])
        elif DATASET not in path:
            self.answer_missing("RepoNotFound")
        else:
            self.answer_missing("EntryNotFound" if REVISION in path else "RevisionNotFound")

    def children(self, folder: str) -> list[dict[str, object]]:
        """The files and folders directly below `folder`."""
        entries: dict[PurePosixPath, dict[str, object]] = {}
        for name, data in self.files.items():
            path = PurePosixPath(name)
            for entry in (path, *path.parents):
                if entry.parent == PurePosixPath(folder) != entry:
                    size, kind = (len(data), "file") if entry == path else (0, "directory")
                    digest = hashlib.sha1(data).hexdigest()
                    entries[entry] = {"type": kind, "path": str(entry), "size": size, "oid": digest}
        return [entries[path] for path in sorted(entries)]

    def answer_file(self, data: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": REVISION}
        span = self.headers.get("Range")
        if span is None:
            self.answer(200, data, headers)
            return
        first, _, last = span.removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        self.answer(206, part, headers)

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer_missing(self, error_code: str) -> None:
        self.answer(404, b"", {"X-Error-Code": error_code})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Keeps requests out of the tests' output."""
