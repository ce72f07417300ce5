"""A headless Chromium, driven by its remote debugging protocol."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def chromium():
    """Path of the browser, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One tab. What the page writes to the console, and what it throws, is in ``complaints``."""

    def __init__(self, width=1280, height=900, dark=False):
        self._folder = tempfile.TemporaryDirectory(prefix="fxgrow-browser-")
        self.complaints, self.requests = [], []
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        flags += ["--disable-dev-shm-usage", "--disable-background-networking", "--mute-audio"]
        flags += ["--remote-debugging-port=0", f"--user-data-dir={self._folder.name}"]
        flags += [
            "--remote-allow-origins=*",
            f"--window-size={width},{height}",
            "--hide-scrollbars",
        ]
        self._process = subprocess.Popen(
            [chromium(), *flags, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._number = 0
        self._socket = websocket.create_connection(self._address(), timeout=60)
        tab = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        target = {"targetId": tab["targetId"], "flatten": True}
        self._session = None
        self._session = self.call("Target.attachToTarget", **target)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Performance.enable", timeDomain="threadTicks")
        self.resize(width, height)
        self.prefer(dark)

    def _address(self):
        port = Path(self._folder.name) / "DevToolsActivePort"
        for _ in range(300):
            if port.exists() and len(lines := port.read_text().split()) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            time.sleep(0.1)
        raise TimeoutError("the browser did not start")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=20)
        for _ in range(20):  # its children may still be writing
            try:
                return self._folder.cleanup()
            except OSError:
                time.sleep(0.2)

    def call(self, method, **params):
        """Send one command and wait for its result; events are noted on the way."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if getattr(self, "_session", None):
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            reply = self._receive()
            if reply.get("id") == self._number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]

    def _receive(self):
        reply = json.loads(self._socket.recv())
        method, params = reply.get("method"), reply.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(params["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        self._last = method
        return reply

    def open(self, path):
        """Load a file; return the seconds until it was drawn."""
        begin = time.perf_counter()
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        while self._last != "Page.loadEventFired":
            self._receive()
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return time.perf_counter() - begin

    def busy(self):
        """Seconds that the page's thread has computed since it opened; no other program counts."""
        metrics = self.call("Performance.getMetrics")["metrics"]
        return next(m["value"] for m in metrics if m["name"] == "TaskDuration")

    def run(self, expression):
        """Return the value of a JavaScript expression."""
        result = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"]))
        return result["result"].get("value")

    def point(self, selector, number=0, click=False):
        """Move the mouse onto an element, as a hand would."""
        place = self.run(
            f"(() => {{ const e = document.querySelectorAll({json.dumps(selector)})[{number}];"
            "e.scrollIntoView({block: 'center', inline: 'center'});"
            "const r = e.getBoundingClientRect();"
            "return [r.x + Math.min(r.width / 2, 60), r.y + r.height / 2] })()"
        )
        at = {"x": place[0], "y": place[1]}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **at)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                button = {"button": "left", "clickCount": 1}
                self.call("Input.dispatchMouseEvent", type=kind, **at, **button)

    def type(self, text):
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key):
        """Press and release one key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def resize(self, width, height=900):
        """Change the size of the page's window."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def prefer(self, dark, media=""):
        """Change the reader's colour scheme, and whether this is for paper."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def picture(self, path, whole=False):
        """Write a screenshot."""
        result = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(result["data"]))

    def pdf(self, path):
        """Print."""
        Path(path).write_bytes(base64.b64decode(self.call("Page.printToPDF")["data"]))
