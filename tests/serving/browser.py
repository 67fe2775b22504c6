"""A headless Chromium driven over WebDriver (W3C, 2018), whose messages are JSON over HTTP: no package is needed.

Debian has both programs (`apt-get install chromium chromium-driver`); where they are not, `MISSING` says so.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DRIVER = shutil.which("chromedriver")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "" if DRIVER and CHROMIUM else "no chromedriver and Chromium: apt-get install chromium chromium-driver"
ARGUMENTS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --force-color-profile=srgb --lang=en"
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"control": "\ue009", "enter": "\ue007", "tab": "\ue004"}
_ANSWERS_WITHIN_S = 60


class Browser:
    """One window.

    Args:
        address: of the driver's session.
    """

    def __init__(self, address: str):
        self._address = address
        self.folder = Path()

    def call(self, path: str, content: Any = None, method: str = "POST") -> Any:
        """Return the value of one command; raises `AssertionError` with the driver's words where it fails."""
        body = None if method != "POST" else json.dumps(content or {}).encode()
        request = urllib.request.Request(
            self._address + path, body, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=_ANSWERS_WITHIN_S) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def downloads(self, folder: Path) -> None:
        """Let files be saved in a folder, without a question."""
        self.folder = folder
        self._developer("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})

    def open(self, address: str) -> None:
        self.call("/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a function body returns that is run in the page with `arguments`."""
        return self.call("/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector: str) -> str:
        return self.call("/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def click(self, selector: str) -> None:
        """Click as a person does: what is covered or out of sight cannot be clicked."""
        self.call(f"/element/{self.find(selector)}/click")

    def type(self, selector: str, text: str, *, clear: bool = True) -> None:
        element = self.find(selector)
        if clear:
            self.call(f"/element/{element}/clear")
        self.call(f"/element/{element}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Press keys together, wherever the focus is."""
        names = [KEYS[key] for key in keys]
        down = [{"type": "keyDown", "value": name} for name in names]
        up = [{"type": "keyUp", "value": name} for name in reversed(names)]
        self.call("/actions", {"actions": [{"type": "key", "id": "keys", "actions": down + up}]})

    def texts(self, selector: str) -> list[str]:
        """Return the visible text of all elements."""
        return self.run("return [...document.querySelectorAll(arguments[0])].map((node) => node.innerText)", selector)

    def text(self, selector: str) -> str:
        (found,) = self.texts(selector)
        return found

    def wait(self, script: str, *arguments: Any, within_s: float = 30) -> Any:
        """Return the first value of a function body that is true."""
        return wait(lambda: self.run(script, *arguments), script, within_s)

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._developer("Emulation.setDeviceMetricsOverride", metrics)

    def media(self, **features: str) -> None:
        """Let the page believe preferences, as `prefers_color_scheme="dark"`."""
        given = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self._developer("Emulation.setEmulatedMedia", {"features": given})

    def messages(self) -> list[str]:
        """Return what the console got since the last call: errors and violations of policies."""
        return [f"{each['level']}: {each['message']}" for each in self.call("/se/log", {"type": "browser"})]

    def picture(self, *, whole: bool = True) -> bytes:
        """Return a PNG of the whole page."""
        found = self._developer("Page.captureScreenshot", {"captureBeyondViewport": whole})
        return base64.b64decode(found["data"])

    def _developer(self, command: str, parameters: dict[str, Any]) -> Any:
        return self.call("/goog/cdp/execute", {"cmd": command, "params": parameters})


def wait(condition: Callable[[], Any], what: str, within_s: float) -> Any:
    end = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {within_s} s: {what}"
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Yield a window of a new browser, which ends with the block."""
    assert DRIVER is not None, MISSING
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [DRIVER, "--port=0"]
        environment = {**os.environ, "HOME": folder, "LANG": "C.UTF-8"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as driver:
            try:
                assert driver.stdout is not None
                line = next(each for each in driver.stdout if "started successfully on port" in each)
                address = f"http://127.0.0.1:{line.rsplit(maxsplit=1)[-1].rstrip('.')}"
                options = {"binary": CHROMIUM, "args": [*ARGUMENTS.split(), f"--user-data-dir={folder}/profile"]}
                wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
                session = Browser(address).call("/session", {"capabilities": {"alwaysMatch": wanted}})
                window = Browser(f"{address}/session/{session['sessionId']}")
                yield window
                window.call("", method="DELETE")
            finally:
                driver.terminate()
