"""A browser that tests drive: headless Chromium over the W3C WebDriver protocol, with the standard library alone."""

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_for

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")

FLAGS = (
    *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
    *("disable-background-networking", "disable-component-update", "disable-sync"),
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of a reference to an element, W3C WebDriver section 12.2


class Key:
    """Keys without a character of their own."""

    BACKSPACE, TAB, ENTER, ESCAPE, SPACE = "\ue003", "\ue004", "\ue007", "\ue00c", "\ue00d"
    LEFT, UP, RIGHT, DOWN, F2 = "\ue012", "\ue013", "\ue014", "\ue015", "\ue032"


class Browser:
    """A session of the W3C WebDriver protocol."""

    def __init__(self, port: int, profile: Path) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        wait_for(lambda: self.call("GET", "/status")["ready"])  # the driver does not listen yet
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": [f"--{flag}" for flag in (*FLAGS, f"user-data-dir={profile}")]},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.address += f"/session/{session['sessionId']}"

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with self.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path} {body}: {json.load(error)['value']['message']}") from error

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def run(self, script: str) -> Any:
        return self.call("POST", "/execute/sync", {"script": script, "args": []})

    def find(self, selector: str) -> str:
        found = self.call("POST", "/element", {"using": "css selector", "value": selector})
        return f"/element/{found[ELEMENT]}"

    def click(self, selector: str) -> None:
        """A click of a mouse at the middle of the element, which must not be covered."""
        self.call("POST", self.find(selector) + "/click", {})

    def press(self, selector: str, key: str) -> None:
        self.call("POST", self.find(selector) + "/value", {"text": key})

    def log(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("POST", "/se/log", {"type": kind})
        return found

    def prefer(self, colours: str) -> None:
        """Colours that the system asks for; and no motion, which would let a click miss what is still moving."""
        wanted = {"prefers-color-scheme": colours, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def visit(self, address: str, width: int = 1400, height: int = 800) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        self.call("POST", "/url", {"url": address})

    def type(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def shown(self, selector: str) -> list[bool]:
        return self.run(f"return [...document.querySelectorAll('{selector}')].map(one => one.checkVisibility())")


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser with a new profile in this folder, which ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen([str(DRIVER), f"--port={port}", "--log-level=OFF"], start_new_session=True)
    try:
        browser = Browser(port, profile)
        yield browser
        browser.call("DELETE", "")
    finally:
        os.killpg(driver.pid, signal.SIGTERM)  # with the browser, should it still run
        driver.wait(timeout=20)
