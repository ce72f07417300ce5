"""Pictures of reports and of the command line for docs/images, from a real browser.

Needs Chromium (``apt install chromium``) and the extra ``test``.
"""

import fcntl
import importlib
import io
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import torch
import torchvision
from PIL import Image
from rich.console import Console
from rich.text import Text

import fxgrow

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))
Browser = importlib.import_module("browser").Browser

IMAGES = ROOT / "docs" / "images"
COLUMNS = 100


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = torchvision.models.resnet18(num_classes=10)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(16, 3, 64, 64, generator=generator)
        data = [(images, torch.arange(16) % 10)]
        fxgrow.inspect(model, images[:2]).to_html(folder / "inspection.html")
        growth = fxgrow.expand(model, data, budget=256, adjust_epochs=0)
        growth.to_html(folder / "growth.html")
        with Browser(1280, 800) as tab:
            report(tab, folder / "inspection.html", "report.png", row=0)
            tab.prefer(dark=True)
            report(tab, folder / "growth.html", "report-dark.png", row=4)
            tab.prefer(dark=False)
            tab.resize(500, 900)
            report(tab, folder / "inspection.html", "report-narrow.png", row=None)
            terminal(tab, folder)


def report(tab, path, name, row):
    tab.open(path)
    if row is not None:
        tab.point("#groups tbody tr", row, click=True)
        tab.point("h1")
        tab.run("scrollTo(0, 0); document.querySelector('.scroll').scrollTo(0, 0)")
    keep(tab, name)


def keep(tab, name):
    tab.picture(IMAGES / name)
    with Image.open(IMAGES / name) as image:
        image.convert("RGB").save(IMAGES / name, optimize=True)
        print(name, image.size, (IMAGES / name).stat().st_size)


def terminal(tab, folder):
    """What the command writes to a terminal of a hundred columns."""
    (folder / "net.py").write_text(
        "import torchvision\n\ndef net():\n    return torchvision.models.resnet18(num_classes=10)\n"
    )
    command = ["fxgrow", "expand", "net.py:net", "--input", "2x3x64x64", "--budget", "256"]
    console = Console(width=COLUMNS, record=True, file=io.StringIO(), force_terminal=True)
    console.print(f"[bold green]$[/] {' '.join(command)}", highlight=False)
    console.print(Text.from_ansi(run(command, folder)))
    (folder / "terminal.svg").write_text(console.export_svg(title="fxgrow"))
    page = folder / "terminal.html"
    page.write_text('<body style="margin:0"><img src="terminal.svg" width="1000">')
    tab.resize(1000, 800)
    tab.open(page)
    tab.resize(1000, int(tab.run("document.images[0].getBoundingClientRect().height")))
    keep(tab, "terminal.png")


def run(command, folder):
    """Run a command on a pseudo-terminal; return what is to be seen at its end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    program = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    environment = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        program, cwd=folder, stdout=theirs, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(theirs)
        parts = []
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            parts.append(part)
    assert process.returncode == 0
    return b"".join(parts).decode().replace("\r\n", "\n")


if __name__ == "__main__":
    main()
