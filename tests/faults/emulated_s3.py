"""A small object server on this machine, with latency: what a benchmark or test of remote caches reads from.

    python tests/faults/emulated_s3.py FOLDER --latency-ms 20

It speaks what reading a cache takes of S3 (GET and HEAD of objects with ranges, ListObjectsV2, XML errors; signatures
are not looked at), and is an ordinary HTTP server with ranges by the same addresses. Each connection has its own
thread, so that waiting for one does not delay another, as with a real bucket.
"""

import argparse
import contextlib
import os
import re
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, NamedTuple, cast
from xml.sax.saxutils import escape

BUCKET, PREFIX = "bucket", "cache"
_REPOSITORY = Path(__file__).resolve().parents[2]

Fault = Literal["unavailable", "cut", "refused", "silent", "flipped"] | None


class Request(NamedTuple):
    """What was asked for: the object's name in the cache, and the bytes (start, end) of it."""

    name: str
    start: int
    end: int


class ObjectServer(ThreadingHTTPServer):
    """Serves a folder as s3://bucket/cache and http://.../bucket/cache.

    Attributes:
        requests: those for objects so far.
        fault: called with each request for an object; what it returns goes wrong: `unavailable` (503), `cut` (the
            connection ends in the middle of the body), `refused` (403), `silent` (no answer for ten minutes), `flipped`
            (the first byte is another).
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, folder: Path, *, latency_ms: float = 0.0, fault: Callable[[Request], Fault] | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.latency_ms = latency_ms
        self.fault = fault
        self.requests: list[Request] = []
        self.ranges = True
        self.listing = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def _objects(self) -> ObjectServer:
        return cast(ObjectServer, self.server)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: requests are counted, not printed."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        time.sleep(self._objects.latency_ms / 1000)
        parts = urllib.parse.urlsplit(self.path)
        bucket, _, key = urllib.parse.unquote(parts.path).lstrip("/").partition("/")
        query = urllib.parse.parse_qs(parts.query)
        if bucket != BUCKET:
            self._error(404, "NoSuchBucket")
        elif "list-type" in query:
            if not self._objects.listing:
                self._error(403, "AccessDenied")
                return
            self._list(query.get("prefix", [""])[0])
        else:
            self._object(key, with_body=with_body)

    def _object(self, key: str, *, with_body: bool) -> None:
        root = self._objects.folder.resolve()
        name = key.removeprefix(f"{PREFIX}/")
        path = (root / name).resolve()
        if not key.startswith(f"{PREFIX}/") or not path.is_relative_to(root) or not path.is_file():
            self._error(404, "NoSuchKey", with_body=with_body)
            return
        total = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "") if self._objects.ranges else "")
        start, end = (int(asked[1]), min(int(asked[2] or total), total - 1) + 1) if asked else (0, total)
        request = Request(name, start, end)
        self._objects.requests.append(request)
        fault = self._objects.fault(request) if self._objects.fault else None
        if fault == "silent":
            time.sleep(600)
        if fault in ("unavailable", "refused"):
            self._error(*((503, "SlowDown") if fault == "unavailable" else (403, "AccessDenied")), with_body=with_body)
            return
        if asked and start >= total:
            self._error(416, "InvalidRange", with_body=with_body)
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{total}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if with_body:
            self._body(path, start, end, fault)

    def _body(self, path: Path, start: int, end: int, fault: Fault) -> None:
        with path.open("rb") as file:
            if fault in ("cut", "flipped"):
                file.seek(start)
                body = bytearray(file.read(end - start))
                if fault == "flipped":
                    body[0] ^= 1
                self.wfile.write(body if fault == "flipped" else body[: len(body) // 2])
                self.close_connection = fault == "cut"
                return
            self.wfile.flush()
            while start < end and (sent := os.sendfile(self.connection.fileno(), file.fileno(), start, end - start)):
                start += sent

    def _list(self, prefix: str) -> None:
        root = self._objects.folder
        keys = {f"{PREFIX}/{path.relative_to(root)}": path for path in sorted(root.rglob("*")) if path.is_file()}
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{path.stat().st_size}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
            for key, path in keys.items()
            if key.startswith(prefix)
        )
        self._xml(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>")

    def _error(self, status: int, code: str, *, with_body: bool = True) -> None:
        self._xml(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>", with_body=with_body)

    def _xml(self, status: int, text: str, *, with_body: bool = True) -> None:
        body = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


class Emulated(NamedTuple):
    """Where the served cache is."""

    url: str
    """s3://..., readable while the variables of `environment` are set."""
    http_url: str
    environment: dict[str, str]
    """What a person would set to reach this bucket. Set in this process while the server runs."""


def reach(endpoint: str) -> Emulated:
    """The addresses of the cache that an ObjectServer at `endpoint` serves."""
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "emulated",
        "AWS_SECRET_ACCESS_KEY": "emulated",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    return Emulated(f"s3://{BUCKET}/{PREFIX}", f"{endpoint}/{BUCKET}/{PREFIX}", environment)


@contextlib.contextmanager
def emulated_s3(folder: Path, *, latency_ms: float = 0.0) -> Iterator[Emulated]:
    """Serves the cache in `folder` from a process of its own; every answer waits for `latency_ms` first."""
    command = [sys.executable, str(Path(__file__).resolve()), str(folder.resolve()), "--latency-ms", str(latency_ms)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_REPOSITORY)
    try:
        assert server.stdout is not None
        endpoint = server.stdout.readline().strip()
        if not endpoint:
            raise RuntimeError(f"expected an endpoint from {' '.join(command)}, got none: see its messages above")
        emulated = reach(endpoint)
        before = {name: os.environ.get(name) for name in emulated.environment}
        os.environ.update(emulated.environment)
        try:
            yield emulated
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name)
                else:
                    os.environ[name] = value
    finally:
        server.terminate()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves a cache as s3://bucket/cache until it is stopped.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="before every answer")
    arguments = parser.parse_args()
    server = ObjectServer(arguments.folder, latency_ms=arguments.latency_ms)
    print(server.endpoint, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()
