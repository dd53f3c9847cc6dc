"""A headless Chromium that a test drives through its debugging pipe: no driver, no package, only Debian's `chromium`.

The protocol is Chrome's DevTools protocol, JSON messages that end in a NUL, over the file descriptors 3 (to the browser) and 4.
"""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["EXECUTABLE", "HOW_TO_RUN", "Browser", "Page", "opened", "started"]

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOW_TO_RUN = (
    "no Chromium; to run this: apt-get install --no-install-recommends chromium fonts-dejavu-core && make test-browser"
)

PATIENCE_S = 120.0
"""How long an answer may take: a loaded machine starts a browser slowly."""

_QUIET = [
    "--headless=new",
    "--no-sandbox",  # tests run as root in CI
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--font-render-hinting=none",
    "--disable-lcd-text",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
]


class Browser:
    """The connection. What the browser says unasked is kept in `events`."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._held = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Ask for something, and wait for the answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait(self, method: str, session: str) -> dict[str, Any]:
        """The next event of that name; one that has come already counts."""
        deadline = time.monotonic() + PATIENCE_S
        seen = 0
        while True:
            for event in self.events[seen:]:
                if event.get("method") == method and event.get("sessionId") == session:
                    return event
            seen = len(self.events)
            self.events.append(self._next(deadline, method))

    def _next(self, deadline: float, awaited: str) -> dict[str, Any]:
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._back], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser did not answer {awaited} in {PATIENCE_S:.0f} s"
            more = os.read(self._back, 1 << 20)
            assert more, f"the browser went away during {awaited}"
            self._held += more
        line, _, self._held = self._held.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


class Page:
    """A page that was loaded, with what its console said and what it asked for."""

    def __init__(
        self, browser: Browser, url: str, width: int, height: int, media: Mapping[str, str], scale: float
    ) -> None:
        self._browser = browser
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        media = {"prefers-reduced-motion": "reduce", **media}  # else a place moves on while it is pointed at
        self.call("Emulation.setEmulatedMedia", features=[{"name": k, "value": v} for k, v in media.items()])
        self.url = url
        browser.events.clear()
        self.call("Page.navigate", url=url)
        browser.wait("Page.loadEventFired", self._session)
        self.js("document.fonts.ready.then(() => true)")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def js(self, expression: str) -> Any:
        """Value of a JavaScript expression (of a promise: once it is there), as JSON gives it."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key as a keyboard does, such as "Tab" or "ArrowRight"."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27, "Home": 36, "End": 35}
        code |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code[key], "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="rawKeyDown", **common)
        if key == "Enter":
            self.call("Input.dispatchKeyEvent", type="char", text="\r", **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def point(self, x: float, y: float) -> None:
        """Move the mouse there."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, *, whole: bool = False) -> npt.NDArray[np.uint8]:
        """What is seen, as [y, x, rgb]; `whole`: the page from top to bottom."""
        more: dict[str, Any] = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            more = {
                "captureBeyondViewport": True,
                "clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1},
            }
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png", **more)["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.uint8)

    def pdf(self) -> bytes:
        """The page as it prints, on A4."""
        return base64.b64decode(
            self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)["data"]
        )

    def complaints(self) -> list[str]:
        """What the console says, and errors that nobody caught."""
        self.js("1")  # so that what was said before has come
        said = []
        for event in self._mine():
            method, parameters = event.get("method"), event.get("params", {})
            if method == "Log.entryAdded":
                said.append(str(parameters["entry"]["text"]))
            elif method == "Runtime.consoleAPICalled":
                said.append(" ".join(str(arg.get("value")) for arg in parameters["args"]))
            elif method == "Runtime.exceptionThrown":
                said.append(str(parameters["exceptionDetails"].get("exception", {}).get("description")))
        return said

    def requests(self) -> list[str]:
        """Addresses the page asked for, but itself and what it holds inline (data:)."""
        self.js("1")
        asked = [e["params"]["request"]["url"] for e in self._mine() if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in asked if url != self.url and not url.startswith("data:")]

    def _mine(self) -> Iterator[dict[str, Any]]:
        return (event for event in self._browser.events if event.get("sessionId") == self._session)

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self.target)


@contextmanager
def started() -> Iterator[Browser]:
    """A browser with a profile of its own, gone afterwards."""
    assert EXECUTABLE is not None
    to_read, to_write = os.pipe()
    back_read, back_write = os.pipe()
    # subprocess keeps the numbers of descriptors; the browser wants 3 and 4. Numbers from 10 on cannot be in the way.
    ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (to_read, back_write)]
    wiring = f"import os, sys; os.dup2({ends[0]}, 3); os.dup2({ends[1]}, 4); os.execv(sys.argv[1], sys.argv[1:])"
    with tempfile.TemporaryDirectory(prefix="directmap-chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [sys.executable, "-c", wiring, EXECUTABLE, *_QUIET, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": profile, "LC_ALL": "C.UTF-8", "TZ": "UTC"},
        )
        for fd in (to_read, back_write, *ends):
            os.close(fd)
        try:
            yield Browser(to_write, back_read)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(to_write)
            os.close(back_read)


@contextmanager
def opened(
    browser: Browser, path: Path, width: int, height: int = 900, *, dark: bool = False, scale: float = 1.0
) -> Iterator[Page]:
    """A page of a file, in a window of so many CSS pixels."""
    media = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
    page = Page(browser, path.as_uri(), width, height, media, scale)
    try:
        yield page
    finally:
        page.close()
