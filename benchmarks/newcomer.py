"""A newcomer's walk: what README and tutorial say, typed exactly in a fresh clone, with times.

Every command goes to one bash, as from a keyboard; files are written as the tutorial shows
them. Nothing is installed beforehand. Writes docs/newcomer.md.
"""

import argparse
import os
import platform
import re
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(
    r'^```(python|console)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Step:
    """One thing that was typed."""

    page: str
    what: str
    seconds: float
    cpu: float
    failed: bool
    output: str


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="newcomer-") as name:
        steps = []
        for number, walk in enumerate((tutorial, readme)):  # each with nothing installed
            clone = Path(name) / str(number) / "fxgrow"
            subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
            steps += walk(clone)
        # before the clones are removed, which takes a while
        (options.out / "newcomer.md").write_text(page(steps), encoding="utf-8")
    raise SystemExit(any(step.failed for step in steps))


def tutorial(clone):
    """Files and commands of the tutorial, in order."""
    text = (clone / "docs" / "tutorial.md").read_text(encoding="utf-8")
    shell = Shell(clone)
    for language, title, block in FENCE.findall(text):
        if language == "console":
            for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
                yield shell.type("tutorial", line)
        elif title:
            shell.write(title, block)
        else:
            shell.write("same.py", block)
            yield shell.type("tutorial", "python same.py")
    shell.close()


def readme(clone):
    """The two commands of the README, and those of the shell that need no file of yours."""
    text = (clone / "README.md").read_text(encoding="utf-8")
    shell = Shell(clone)
    for line in re.findall(r"^\$ (make demo)\b", text, re.MULTILINE):
        yield shell.type("README", line)
    shell.type("README", ". .venv/bin/activate")
    pattern = r"^\$ (fxgrow \w+ torchvision:resnet18[^#\n]*)"
    for line in re.findall(pattern, text, re.MULTILINE):
        yield shell.type("README", line.strip())
    shell.close()


class Shell:
    """A bash that keeps its folder and its environment from one line to the next."""

    def __init__(self, folder):
        self.cpu = 0.0
        self.process = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def type(self, page, line):
        """Type one line and wait for it."""
        begin = time.perf_counter()
        self.process.stdin.write(f'{line}\necho "<<end $?>>"; times\n')
        self.process.stdin.flush()
        output = []
        for text in self.process.stdout:
            if end := re.fullmatch(r"(.*)<<end (\d+)>>\n", text, re.DOTALL):
                output.append(end[1])
                break
            output.append(text)
        seconds = time.perf_counter() - begin
        self.process.stdout.readline()  # what the shell itself took
        parts = re.findall(r"(\d+)m([\d.]+)s", self.process.stdout.readline())
        before, self.cpu = self.cpu, sum(60 * int(m) + float(s) for m, s in parts)
        step = Step(page, line, seconds, self.cpu - before, end[2] != "0", "".join(output))
        failed = "FAILED " if step.failed else ""
        print(f"{seconds:7.1f} s {step.cpu:7.1f} s  {failed}{line}", flush=True)
        if page:
            print(step.output[-1500:], flush=True)
        return step

    def write(self, name, text):
        """Write a file into the present folder, as with an editor."""
        self.type("", f"cat > {name} <<'END-OF-FILE'\n{text}END-OF-FILE")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def page(steps):
    lines = [
        "# A newcomer's walk",
        "",
        f"Written by `benchmarks/newcomer.py` (Python {platform.python_version()}, "
        f"{platform.machine()}); do not edit. A fresh clone for each, nothing installed; every "
        "line was typed as the [tutorial](tutorial.md) and the README have it, files included. The "
        f"machine has {os.cpu_count()} cores, which others were using (load average "
        f"{os.getloadavg()[2]:.0f}): a machine of your own takes the processor's time, and what "
        "downloads take.",
        "",
        "| typed | seconds | of the processor | |",
        "|---|--:|--:|---|",
    ]
    for name in dict.fromkeys(step.page for step in steps):
        own = [step for step in steps if step.page == name]
        lines += [
            f"| `{step.what}` | {step.seconds:.1f} | {step.cpu:.1f} | "
            f"{'FAILED' if step.failed else ''} |"
            for step in own
        ]
        total, cpu = sum(s.seconds for s in own), sum(s.cpu for s in own)
        lines.append(f"| **{name}, all** | **{total:.0f}** | **{cpu:.0f}** | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
