"""A server on this machine that speaks OpenAI's protocol, as far as judges use it: real HTTP for the real client."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from evaluate.judge.lexical import LexicalBaseline


@dataclass(frozen=True)
class Answer:
    """What the server sends back."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def completion(text: str | None, **fields: Any) -> Answer:  # noqa: ANN401 - of the protocol
    """A chat completion: 10 tokens in and 2 out."""
    answer = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "loopback-1",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
    return Answer(json.dumps(answer | fields).encode())


def failure(status: int, message: str = "no", code: str | None = None, **headers: str) -> Answer:
    """An error as OpenAI spells it."""
    body = json.dumps({"error": {"message": message, "type": "t", "param": None, "code": code}}).encode()
    return Answer(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def as_the_lexical_baseline(request: dict[str, Any], _number: int) -> Answer:
    """The baseline's answers."""
    return completion(LexicalBaseline().reply(request["messages"], max_tokens=request["max_tokens"]))


Behaviour = Callable[[dict[str, Any], int], Answer]
"""(request, its number from 0) -> answer."""


@dataclass
class JudgeServer:
    """What was asked, and how it is answered."""

    base_url: str
    behaviour: Behaviour = as_the_lexical_baseline
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@contextlib.contextmanager
def judge_server() -> Iterator[JudgeServer]:
    """A running server; it ends with the block."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(state.requests)
                state.requests.append(request)
                state.keys.append(self.headers["Authorization"])
            found = self.path == "/v1/chat/completions"
            answer = state.behaviour(request, number) if found else failure(404, "no such path")
            with contextlib.suppress(ConnectionError):  # the client may have given up
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Prints nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = JudgeServer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
