"""Drives a headless Chromium by the WebDriver protocol, where there is one."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

AVAILABLE = all(shutil.which(name) for name in ("chromedriver", "chromium"))
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # what the standard calls an element


class Browser:
    """One window.

    Args:
        port: Of the driver.
    """

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}"
        options = {
            "binary": shutil.which("chromium"),
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"],
        }
        given = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": given}})
        self._session = f"/session/{answer['sessionId']}"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def tell(self, method: str, path: str, body: Any = None) -> Any:
        return self._ask(method, self._session + path, body)

    def command(self, name: str, **given: Any) -> Any:
        """Of Chromium's own protocol."""
        return self.tell("POST", "/goog/cdp/execute", {"cmd": name, "params": given})

    def open(self, path: Path) -> float:
        """Open a file, and give the seconds until it was drawn."""
        since = time.perf_counter()
        self.tell("POST", "/url", {"url": path.resolve().as_uri()})
        self.run("return document.readyState")
        return time.perf_counter() - since

    def run(self, script: str, *arguments: Any) -> Any:
        return self.tell("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def resize(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def find(self, selector: str) -> str:
        found = self.tell("POST", "/element", {"using": "css selector", "value": selector})
        element: str = found[_ELEMENT]
        return element

    def click(self, selector: str) -> None:
        self.tell("POST", f"/element/{self.find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        self.tell("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def screenshot(self, path: Path, *, most: int = 8000, top: bool = True) -> None:
        """Of the page from its top, so many pixels of it; or of what the window shows."""
        given: dict[str, Any] = {}
        if top:
            height = self.run("return document.documentElement.scrollHeight")
            width = self.run("return window.innerWidth")
            clip = {"x": 0, "y": 0, "width": width, "height": min(height, most), "scale": 1}
            given = {"captureBeyondViewport": True, "clip": clip}
        shot = self.command("Page.captureScreenshot", **given)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What the console was told since the last time."""
        return [entry["message"] for entry in self.tell("POST", "/se/log", {"type": "browser"})]

    def close(self) -> None:
        self.tell("DELETE", "")


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start a driver and a browser, and end both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        window = Browser(port)
        try:
            yield window
        finally:
            window.close()
    finally:
        driver.terminate()
        driver.wait(timeout=60)
