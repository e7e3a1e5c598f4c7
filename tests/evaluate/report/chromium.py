"""A real browser without a window, driven through the DevTools protocol."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT_SECONDS = 60


def program() -> str:
    """The browser on this machine: CHROMIUM, else the first of the usual names."""
    found = os.environ.get("CHROMIUM") or next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        raise FileNotFoundError(
            f"expected a Chromium for the tests marked `browser`, found none of {', '.join(PROGRAMS)}. Install one "
            "(apt-get install chromium), or name it in CHROMIUM"
        )
    return found


class Tab:
    """One page: what it loads, what it logs, and what it shows."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket, self._last = loop, socket, 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        """Errors and warnings on the console, exceptions, and what the policy of the page refused."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401 - the protocol's
        """Sends a command and waits for its answer; events that come meanwhile are noted."""
        self._last += 1
        return self._loop.run_until_complete(self._call(self._last, method, parameters))

    async def _call(self, number: int, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads(await asyncio.wait_for(self._socket.receive_str(), TIMEOUT_SECONDS))
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, event: str, parameters: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(parameters["args"]))
        elif event == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.complaints.append(parameters["entry"]["text"])

    def run(self, script: str) -> Any:  # noqa: ANN401 - whatever JavaScript gives
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_until(self, condition: str) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + TIMEOUT_SECONDS
        while not self.run(condition):
            assert time.monotonic() < end, f"never came true: {condition}"
            time.sleep(0.02)

    def open(self, address: str) -> None:
        """Loads a page from nothing, even if only the part behind # is new, and waits for it."""
        self.call("Page.navigate", url="about:blank")
        self.wait_until("location.href === 'about:blank'")
        self.requests.clear()
        self.complaints.clear()
        self.call("Page.navigate", url=address)
        self.wait_until("location.href !== 'about:blank' && document.readyState === 'complete'")

    def show_as(self, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Size of the window, and the colours that its user prefers; below 600 points it is a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def press(self, key: str) -> None:
        """A key, pressed and let go."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def point_at(self, script: str) -> None:
        """Moves the mouse to the middle of the element that an expression gives."""
        x, y = self._middle(script)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def tap(self, script: str) -> None:
        """Touches the middle of the element that an expression gives, as on a phone."""
        x, y = self._middle(script)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def _middle(self, script: str) -> tuple[float, float]:
        x, y = self.run(
            f"(async () => {{ const e = {script}; e.scrollIntoView({{block: 'center', behavior: 'instant'}}); "
            "await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))); "
            "const b = e.getClientRects()[0]; return [b.left + b.width / 2, b.top + b.height / 2]; })()"
        )
        return x, y

    def is_wider_than_the_window(self) -> bool:
        """Whether there is sideways scrolling. `innerWidth` would not tell: on a phone it grows with the content."""
        return bool(
            self.run(
                "(async () => { await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))); "
                "return document.documentElement.scrollWidth > document.documentElement.clientWidth; })()"
            )
        )

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """A picture of the window, or of the whole page."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def open_tab(folder: Path) -> Iterator[Tab]:
    """A browser with one empty tab; its profile is in `folder`."""
    process = subprocess.Popen(
        [
            program(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-extensions", "--remote-debugging-port=0",
            f"--user-data-dir={folder}", "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    loop = asyncio.new_event_loop()
    try:
        port = _port(process, folder / "DevToolsActivePort")
        session = loop.run_until_complete(_session())
        try:
            address = loop.run_until_complete(_page_address(session, port))
            socket = loop.run_until_complete(session.ws_connect(address, max_msg_size=0))
            yield Tab(loop, socket)
            loop.run_until_complete(socket.close())
        finally:
            loop.run_until_complete(session.close())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        loop.close()


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


async def _page_address(session: aiohttp.ClientSession, port: int) -> str:
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        pages = [target for target in await answer.json() if target["type"] == "page"]
    return str(pages[0]["webSocketDebuggerUrl"])


def _port(process: "subprocess.Popen[bytes]", file: Path) -> int:
    """The port that the browser chose, from the file in which it says so."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, f"the browser ended with {process.returncode}"
        with contextlib.suppress(FileNotFoundError, IndexError, ValueError):
            return int(file.read_text().splitlines()[0])
        time.sleep(0.05)
    raise AssertionError("the browser did not say at which port it listens")
