"""A page in headless Chromium, driven over a pipe with the DevTools protocol; needs no package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SECONDS = 30.0
_CODES = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39}
_CODES |= {"ArrowDown": 40, "Tab": 9, "Backspace": 8, "F1": 112}
_MODIFIERS = {"Alt": 1, "Control": 2, "Shift": 8}


class Chromium:
    """One browser with one page, for as long as the `with` block lasts."""

    def __init__(self, folder: Path) -> None:
        """Start a browser with its profile in a folder."""
        program = next(
            (
                found
                for name in ("chromium", "chromium-browser", "google-chrome")
                if (found := shutil.which(name))
            ),
            None,
        )
        assert program, "chromium is not installed"
        to_browser, self._write_end = os.pipe()
        self._read_end, from_browser = os.pipe()
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--force-device-scale-factor=1",
            "--remote-debugging-pipe",  # reads requests from descriptor 3, answers to descriptor 4
            f"--user-data-dir={folder}",
        ]
        self._process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'exec "$@" 3<&{to_browser} 4>&{from_browser}',
                "bash",
                program,
                *options,
            ],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._unread = b""
        self._session: str | None = None
        self._last = 0
        self.complaints: list[str] = []  # exceptions, and what a policy or the network refused
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read_end)
        os.close(self._write_end)

    def _ask(self, method: str, **parameters: Any) -> Any:
        """Send a request and return its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write_end, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == self._last:
                assert "error" not in found, found["error"]
                return found["result"]

    def _receive(self) -> dict[str, Any]:
        """Return the next message of the browser, and write down what it complains of."""
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._read_end], [], [], SECONDS)
            data = os.read(self._read_end, 1 << 20) if ready else b""
            assert data, "chromium does not answer"
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        if found.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(found["params"]["exceptionDetails"]))
        elif found.get("method") == "Log.entryAdded":
            self.complaints.append(found["params"]["entry"]["text"])
        elif found.get("method") == "Page.javascriptDialogOpening":
            self._last += 1
            accept = {"id": self._last, "method": "Page.handleJavaScriptDialog"}
            accept |= {"params": {"accept": True}, "sessionId": self._session}
            os.write(self._write_end, json.dumps(accept).encode() + b"\0")
        return found

    def open(self, url: str) -> None:
        """Go to a page and wait until it is loaded."""
        self.run("window.isLeft = true")
        self._ask("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && !window.isLeft")

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited if it is a promise."""
        found = self._ask(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until an expression is true, and return its value."""
        deadline = time.monotonic() + SECONDS
        while not (value := self.run(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.02)
        return value

    def type(self, text: str) -> None:
        """Type a text where the focus is."""
        self._ask("Input.insertText", text=text)

    def press(self, keys: str) -> None:
        """Press a key, perhaps with others held: "Control+Enter", "Alt+1"."""
        *held, key = keys.split("+")
        modifiers = sum(_MODIFIERS[each] for each in held)
        code = f"Key{key.upper()}" if key.isalpha() and len(key) == 1 else key
        code = f"Digit{key}" if key.isdigit() else code
        number = _CODES.get(key) or ord(key.upper())
        event = {"key": key, "code": code, "modifiers": modifiers, "windowsVirtualKeyCode": number}
        text = {"text": "\r"} if keys == "Enter" else {}
        self._ask("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **event)

    def point(self, expression: str, *, click: bool = False) -> None:
        """Move the pointer to the middle of an element, given as an expression, and click there."""
        script = f"(box => [box.x + box.width / 2, box.y + box.height / 2])({expression}"
        x, y = self.run(script + ".getClientRects()[0])")
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def look(self, *, width: int = 1280, height: int = 800, scheme: str = "light") -> None:
        """Set the size of the window in pixels, and whether the user prefers light or dark."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._ask("Emulation.setEmulatedMedia", features=[feature])

    def picture(self, file: Path) -> None:
        """Write what the window shows as a PNG."""
        file.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))
