"""Reports in a real browser: nothing to complain of, filter, sort, hover, dark, paper."""

import pytest
import torch
from conftest import ROOT
from networks import IMAGE, NETWORKS, VECTOR
from test_pages import HOSTILE, hostile
from torch import nn

import fxgrow

# the browser is a program, not a package: pip can't bring it along
websocket = pytest.importorskip("websocket", reason="drives the browser (extra: test)")
browser = pytest.importorskip("browser", reason="drives the browser (extra: test)")
pytestmark = pytest.mark.skipif(
    browser.chromium() is None, reason="no Chromium on this machine (apt install chromium)"
)

LIT = "[...document.querySelectorAll('#net .n.on')].map(n => n.querySelector('text').textContent)"
ROWS = "[...document.querySelectorAll('#groups tbody tr:not([hidden])')]"
NAMES = f"{ROWS}.map(r => r.querySelector('code').textContent)"


@pytest.fixture(scope="module")
def tab():
    with browser.Browser() as tab:
        yield tab


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    net = NETWORKS["residual"][0]()
    fxgrow.inspect(net, IMAGE).to_html(folder / "residual.html")
    fxgrow.widen(net, IMAGE, {"stem": 3}).to_html(folder / "growth.html")
    fxgrow.inspect(hostile(), VECTOR).to_html(folder / "hostile.html")
    return folder


@pytest.fixture(autouse=True)
def no_complaints(tab):
    tab.complaints.clear()
    tab.requests.clear()
    tab.resize(1280)
    tab.prefer(dark=False)
    yield
    assert tab.complaints == []
    assert all(url.startswith("file:") for url in tab.requests)


def role(tab, name, index):
    """Labels of the nodes that are lit in one role."""
    return tab.run(
        f"[...document.querySelectorAll('#net .n.on.{name}')]"
        ".map(n => n.querySelector('text').textContent)"
    )


def test_pointing_at_a_row_lights_its_group(tab, pages):
    tab.open(pages / "residual.html")
    inspection = fxgrow.inspect(NETWORKS["residual"][0](), IMAGE)
    assert tab.run(LIT) == []
    for index, group in enumerate(inspection.groups):
        tab.point("#groups tbody tr", index)
        for kind in ("producer", "consumer"):
            layers = {s.tensor.rpartition(".")[0] for s in group.slots if s.role == kind}
            found = set(role(tab, kind, index))
            # a layer that does both is lit as a producer
            assert found <= layers
            assert layers - found <= set(role(tab, "producer", index))
        assert group.name in tab.run("document.querySelector('#about').textContent")
    tab.point("h1")
    assert tab.run(LIT) == []


def test_pointing_at_a_layer_lights_what_it_writes(tab, pages):
    tab.open(pages / "residual.html")
    names = tab.run("[...document.querySelectorAll('#net .n')].map(n => n.textContent)")
    stem = next(i for i, name in enumerate(names) if name.startswith("stem"))
    tab.point("#net .n", stem)
    assert "stem" in role(tab, "producer", 0)
    hot = tab.run("document.querySelector('tr.hot code').textContent")
    assert hot == "stem"
    tops = "[...document.querySelectorAll('#net .n.on')].map(n => n.getBoundingClientRect().y)"
    rows = len(set(tab.run(tops)))
    assert tab.run("document.querySelectorAll('.strip i').length") == rows
    assert tab.run("document.querySelector('.front path').getAttribute('d')").startswith("M")


def test_click_keeps_and_escape_lets_go(tab, pages):
    tab.open(pages / "residual.html")
    tab.point("#groups tbody tr", 0, click=True)
    tab.point("h1")
    kept = tab.run(LIT)
    assert kept
    assert tab.run("document.querySelectorAll('tr.pinned').length") == 1
    tab.press("Escape")
    assert tab.run(LIT) == []
    assert tab.run("document.querySelectorAll('tr.pinned').length") == 0


def test_filter(tab, pages):
    tab.open(pages / "residual.html")
    everything = tab.run(NAMES)
    tab.run("document.querySelector('#seek').focus()")
    tab.type("stem")
    some = tab.run(NAMES)
    assert "stem" in some
    assert 0 < len(some) < len(everything)
    assert tab.run("document.querySelector('#count').textContent") == (
        f"{len(some)} of {len(everything)}"
    )
    tab.type(" nothing like it")
    assert tab.run(NAMES) == []
    tab.run("document.querySelector('#seek').value = ''")
    tab.run("document.querySelector('#seek').dispatchEvent(new Event('input'))")
    tab.run(
        "(e => { e.value = 'frozen'; e.dispatchEvent(new Event('change')) })"
        "(document.querySelector('#status'))"
    )
    inspection = fxgrow.inspect(NETWORKS["residual"][0](), IMAGE)
    assert tab.run(NAMES) == [group.name for group in inspection.frozen]


@pytest.mark.parametrize("key", ["width", "params", "flops", "name"])
def test_sort(tab, pages, key):
    tab.open(pages / "residual.html")
    values = (
        "(d => [...document.querySelectorAll('#groups tbody tr')]"
        f".map(r => d.groups[Number(r.dataset.g)].{key}))"
        "(JSON.parse(document.getElementById('data').textContent))"
    )
    before = tab.run(values)
    head = f"th[data-key={key}]"
    tab.point(f"{head} button", click=True)
    once = tab.run(values)
    tab.point(f"{head} button", click=True)
    twice = tab.run(values)
    known = sorted(v for v in before if v is not None)
    unknown = [None] * before.count(None)
    orders = {True: known + unknown, False: known[::-1] + unknown}
    numbers = key != "name"
    assert once == orders[not numbers]
    assert twice == orders[numbers]
    wanted = "ascending" if numbers else "descending"
    assert tab.run(f"document.querySelector('{head}').getAttribute('aria-sort')") == wanted


def test_names_run_nothing(tab, pages):
    tab.run("window.alert = () => { throw new Error('ran') }")
    tab.open(pages / "hostile.html")
    rows = len(tab.run(NAMES))
    assert rows >= len(HOSTILE)
    for index in range(rows):
        tab.point("#groups tbody tr", index)
    assert (
        tab.run("document.querySelectorAll('img, b script, #about *:not(p, b, span, code)').length")
        == 0
    )
    assert tab.run("document.scripts.length") == 2


def test_growth_shows_before_and_after(tab, pages):
    tab.open(pages / "growth.html")
    assert "→" in tab.run("document.querySelector('#net .grown text.size').textContent")
    tab.run(
        "(e => { e.value = 'grown'; e.dispatchEvent(new Event('change')) })"
        "(document.querySelector('#status'))"
    )
    assert tab.run(NAMES) == ["stem"]
    assert tab.run("document.querySelector('.meter i + i').getBoundingClientRect().width") > 2


CONTRAST = """(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => { const [r, g, b] = parse(c).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const behind = (e) => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (parse(c).length < 4 || parse(c)[3] > 0) return c } return 'rgb(255, 255, 255)' };
  return Math.min(...[...document.querySelectorAll('h1, small, dd, dt, th, td, code, p, .r')]
    .filter((e) => e.textContent.trim()).map((e) => {
      const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) })) })()"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_light_and_dark(tab, pages, dark):
    tab.prefer(dark)
    tab.open(pages / "growth.html")
    background = tab.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(13, 17, 23)") is dark
    assert tab.run(CONTRAST) >= 4.5  # WCAG AA
    tab.point("#groups tbody tr", 0, click=True)
    assert tab.run(CONTRAST) >= 4.5


@pytest.mark.parametrize("width", [1280, 500])
def test_nothing_sticks_out(tab, pages, width):
    tab.resize(width)
    for name in ("residual", "growth", "hostile"):
        tab.open(pages / f"{name}.html")
        assert tab.run("document.documentElement.scrollWidth") <= width


def test_paper_holds_table_and_picture(tab, pages, tmp_path):
    tab.open(pages / "residual.html")
    tab.prefer(dark=True, media="print")
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    hidden = tab.run(
        "['.bar', '.strip', '#about'].map(s => getComputedStyle(document.querySelector(s)).display)"
    )
    assert hidden == ["none"] * 3
    tab.prefer(dark=False)
    tab.pdf(tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_a_thousand_layers_open_and_light_at_once(tab, tmp_path):
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(6, 8)
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(1000))

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = x + block(x).relu()
            return x

    with torch.no_grad():
        fxgrow.inspect(Deep(), VECTOR).to_html(tmp_path / "deep.html")
    tab.open(tmp_path / "deep.html")
    assert tab.busy() < 2
    assert tab.run("document.querySelectorAll('#net .n').length") < 200  # those in sight
    before = tab.busy()
    tab.run("""(async () => {
      const rows = [...document.querySelectorAll('#groups tbody tr')];
      for (let k = 0; k < 20; k++) {
        rows[k % 2].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
      } })()""")
    assert (tab.busy() - before) / 20 < 0.1  # what people take for at once
    tab.run("document.querySelector('.sheet').scrollTo(0, 20000)")
    tab.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
    assert tab.run("document.querySelectorAll('#net .n').length") > 10
    tab.point("#groups tbody tr", 0)
    assert tab.run(LIT)  # out here too


def test_pages_of_the_docs_examples_are_looked_at(tab):
    """Screenshots that the docs show are there, and of a size that pages can carry."""
    pictures = sorted((ROOT / "docs" / "images").glob("*.png"))
    assert pictures
    assert all(path.stat().st_size < 400_000 for path in pictures)
