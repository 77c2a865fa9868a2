"""Headless Chromium for the tests of the pages."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest


class Browser:
    """Headless Chromium through its debugging pipe: real keys, real page policy, no package needed."""

    def __init__(self, folder: Path):
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        if browser is None:
            pytest.skip("no chromium here")
        words = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
        command = ["sh", "-c", 'exec "$@" 3<&0 4>&1 >/dev/null', "sh", *words, "--remote-debugging-pipe"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process, self.number, self.session, self.events = subprocess.Popen(command, **pipes), 0, {}, []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: object) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **self.session}
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        self.process.stdin.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict:
        found = bytearray()
        while (byte := self.process.stdout.read(1)) not in (b"\0", b""):
            found += byte
        return json.loads(found)

    def open(self, path: Path, width: int = 1200, scheme: str = "light") -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def ask(self, expression: str, wait: bool = False):
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=wait)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        named = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        text = {"text": " "} if key == " " else {}
        self("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self("Input.dispatchKeyEvent", type="keyUp", **named)
