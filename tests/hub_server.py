"""A hub on the loopback that serves the data sets of a folder, as `datasets` and `huggingface_hub` ask for them.

`<folder>/<owner>/<name>/...` (or `<folder>/<name>/...`) are the files of a data set. One with a file `.gated` is given
to those alone who send a token.
"""

import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "c0ffee" * 6 + "c0ff"
"""Of every data set."""


@contextlib.contextmanager
def hub(folder: Path) -> Iterator[str]:
    """The address of a hub that serves `folder` while the block runs."""

    class Handler(_Handler):
        root = folder

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def silent_hub() -> Iterator[tuple[str, list[socket.socket]]]:
    """The address of a server that takes every connection and never answers, and the connections that it took."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            with contextlib.suppress(OSError):  # closed, at the end
                while True:
                    taken.append(server.accept()[0])

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", taken
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in taken:
                connection.close()


def point_libraries_at(url: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Makes `huggingface_hub` and `datasets` in this process ask the hub at `url`, with a cache of their own."""
    import datasets
    import huggingface_hub
    from huggingface_hub import constants, hf_api

    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for module, name, value in (
        (constants, "ENDPOINT", url),
        (constants, "HUGGINGFACE_CO_URL_TEMPLATE", template),
        (constants, "HF_HUB_CACHE", str(cache / "hub")),
        (constants, "HF_HUB_OFFLINE", False),
        (hf_api.api, "endpoint", url),
        (datasets.config, "HF_ENDPOINT", url),
        (datasets.config, "HF_HUB_OFFLINE", False),
        (datasets.config, "HF_DATASETS_CACHE", cache / "datasets"),
        (datasets.config, "HF_MODULES_CACHE", str(cache / "modules")),
    ):
        patch.setattr(module, name, value)
    patch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    patch.delenv("HF_TOKEN", raising=False)


class _Handler(BaseHTTPRequestHandler):
    root: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/datasets/"):
            self._describe(path.removeprefix("api/datasets/"))
        elif path.startswith("datasets/") and "/resolve/" in path:
            repo, _, rest = path.removeprefix("datasets/").partition("/resolve/")
            self._give(repo, rest.partition("/")[2])
        else:
            self._refuse(404, "RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """What is known of some paths of a data set."""
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length).decode()
        path = unquote(urlsplit(self.path).path).strip("/").removeprefix("api/datasets/")
        repo, _, _ = path.partition("/paths-info/")
        if not self._may_read(repo):
            return
        names = json.loads(body)["paths"] if body.startswith("{") else []
        self._send(json.dumps([_entry(self.root / repo, name) for name in names if (self.root / repo / name).exists()]))

    def _describe(self, path: str) -> None:
        repo, _, rest = path.partition("/tree/") if "/tree/" in path else path.partition("/revision/")
        if not self._may_read(repo):
            return
        folder = self.root / repo
        if "/tree/" in path:
            below = rest.partition("/")[2]
            if not (folder / below).is_dir():
                self._refuse(404, "EntryNotFound")
                return
            names = sorted(entry.relative_to(folder).as_posix() for entry in (folder / below).iterdir())
            self._send(json.dumps([_entry(folder, name) for name in names if not name.endswith(".gated")]))
        else:
            files = [entry.relative_to(folder).as_posix() for entry in sorted(folder.rglob("*")) if entry.is_file()]
            siblings = [{"rfilename": name} for name in files if name != ".gated"]
            self._send(json.dumps({"id": repo, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}))

    def _give(self, repo: str, name: str) -> None:
        if not self._may_read(repo):
            return
        path = self.root / repo / name
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._send(data, etag=_sha(path))
            return
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        self._send(data[first : last + 1], etag=_sha(path), part=f"bytes {first}-{last}/{len(data)}")

    def _may_read(self, repo: str) -> bool:
        folder = self.root / repo
        if not folder.is_dir():
            self._refuse(401, "RepoNotFound")  # as the hub answers those without a token
        elif (folder / ".gated").exists() and "Authorization" not in self.headers:
            self._refuse(401, "GatedRepo", f"Access to dataset {repo} is restricted. You must be authenticated.")
        else:
            return True
        return False

    def _send(self, body: bytes | str, *, etag: str | None = None, part: str | None = None) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(200 if part is None else 206)
        if part is not None:
            self.send_header("Content-Range", part)
        self.send_header("Content-Type", "application/json" if etag is None else "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        if etag is not None:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message or code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(folder: Path, name: str) -> dict[str, object]:
    path = folder / name
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    return {"type": "file", "path": name, "oid": _sha(path), "size": path.stat().st_size}


def _sha(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
