"""The pages of docs/ run as they stand: Python blocks, files with a title, commands.

``` python title="x.py"`` is written to a file, other Python is executed, page by page in
one namespace and an empty folder. ``$ fxgrow ...`` and ``$ python x.py`` are run; the lines
under them must be among what they write (``…`` stands for anything). What can't be run has
a comment ``<!-- not run: reason -->`` before it; ``<!-- setup`` holds what a fragment needs.
"""

import re
import runpy
import shlex
from dataclasses import dataclass

import pytest
import torch
from conftest import ROOT
from fxgrow_cli.main import app
from typer.testing import CliRunner

import fxgrow

DOCS = ROOT / "docs"
FENCE = re.compile(
    r"(?P<skip><!-- not run: (?P<reason>[^>]*) -->\s*)?"
    r"(?:^<!-- setup\n(?P<setup>.*?)^-->$"
    r"|^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n(?P<text>.*?)^```$)",
    re.MULTILINE | re.DOTALL,
)
NEEDS = {
    "howto/large.md": "transformers",
    "howto/timm.md": "timm",
    "howto/transformers.md": "transformers",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    title: str | None
    reason: str | None
    line: int


def blocks(page):
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["setup"] is not None:
            yield Block("python", match["setup"], None, None, line)
        elif match["language"] in {"python", "console"}:
            reason = match["reason"]
            yield Block(match["language"], match["text"], match["title"], reason, line)


PAGES = [
    str(page.relative_to(DOCS))
    for page in sorted(DOCS.rglob("*.md"))
    if page.name != "cli.md"  # its commands are run by test_cli_commands.py, on files made there
    and any(block.reason is None for block in blocks(page))
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to be in, on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield tmp_path
    torch.set_num_threads(threads)
    if torch.distributed.is_initialized():  # a page that failed half-way
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page, folder, capsys):
    if page in NEEDS:
        pytest.importorskip(NEEDS[page], reason=f"what the page is about: {NEEDS[page]}")
    names = {"__name__": "docs"}
    for block in blocks(DOCS / page):
        if block.reason is not None:
            continue
        if block.title is not None:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            # on its line of the page, for tracebacks
            source = "\n" * block.line + block.text
            exec(compile(source, str(DOCS / page), "exec"), names)
        else:
            for command, wanted in commands(block.text):
                check(command, wanted, run(command, capsys))


def commands(text):
    """Commands with the lines that are promised under them."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command.partition("  #")[0].strip(), [line for line in output.splitlines() if line]


def run(command, capsys):
    program, *arguments = shlex.split(command)
    if program == "fxgrow":
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, (command, result.output, result.exception)
        return result.output
    assert program == "python", command
    capsys.readouterr()
    runpy.run_path(arguments[0], run_name="__main__")
    return capsys.readouterr().out


def check(command, wanted, output):
    """Look for the promised lines, in order."""
    flat = " ".join(output.split())
    parts = [re.escape(" ".join(line.split())).replace("…", ".*?") for line in wanted]
    assert re.search(".*?".join(parts), flat, re.DOTALL), f"{command} writes:\n{output}"


def test_reference_names_all_that_is_public():
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    listed = {path.rpartition(".")[2] for path in re.findall(r"^::: (\S+)", text, re.MULTILINE)}
    listed |= set(re.findall(r"heading: (\w+)", text))
    errors = {name for name in fxgrow.__all__ if hasattr(fxgrow.errors, name)}
    assert "errors" in listed  # all of them stand in that module
    assert set(fxgrow.__all__) - errors <= listed


def test_what_is_not_run_says_why():
    for page in DOCS.rglob("*.md"):
        for block in blocks(page):
            assert block.reason is None or len(block.reason.split()) >= 3


def test_promises_are_checked():
    check("x", ["one", "t…o"], "zero\none  \n two\n")
    with pytest.raises(AssertionError):
        check("x", ["two", "one"], "one\ntwo\n")
