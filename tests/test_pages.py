"""Reports: what the picture shows, where it puts things, and that names are only text."""

import json
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import IMAGE, NETWORKS, VECTOR
from torch import nn

import fxgrow
from fxgrow import pages
from fxgrow.errors import FileError, InputError
from fxgrow.pages.layout import HALF, lay_out
from fxgrow.pages.network import Network, Node, by_layers, network_of, roles_of, users_of
from fxgrow.pages.safe import clean, code, shortened
from fxgrow.pages.view import short

HOSTILE = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "'onmouseover='alert(3)",
    "<!--",
    "]]>",
    "&lt;b&amp;",
    "a|b`c*d_[e](javascript:alert(4))",
    "nul\x00 bell\x07 esc\x1b[31m",
    "turned \u202e around",
    "lines\nof\r\ntext",
    "{{7*7}} ${x} \\u003c",
    "тест 网络 🚀",
]


def mlp(width=8):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def hostile(names=HOSTILE):
    net = nn.Sequential()
    for name in names:
        net.add_module(name, nn.Linear(6, 6))
    return net


@pytest.fixture(scope="module")
def inspections():
    return {name: fxgrow.inspect(make(), example) for name, (make, example, *_) in NETWORKS.items()}


# ------------------------------------------------------------------- network


@pytest.mark.parametrize("name", NETWORKS)
def test_network_holds_every_tensor_and_every_group(inspections, name):
    inspection = inspections[name]
    network = network_of(inspection)
    assert all(a < b for a, b in network.edges)
    assert len(set(network.edges)) == len(network.edges)
    users = users_of(network)
    for group in (*inspection.groups, *inspection.frozen):
        roles = roles_of(group, users)
        assert set(roles) == {slot.role for slot in group.slots}
        assert all(roles.values()), roles
    ops = Counter(node.op for node in network.nodes)
    assert ops["output"] == 1
    assert ops["input"] >= 1


@pytest.mark.parametrize("name", NETWORKS)
def test_models_that_are_no_graph_show_their_layers(inspections, name):
    inspection = inspections[name]
    network = by_layers(inspection)
    assert all(a < b for a, b in network.edges)
    users = users_of(network)
    for group in (*inspection.groups, *inspection.frozen):
        assert all(roles_of(group, users).values())
    assert all(node.tensors for node in network.nodes)
    lay_out(network)


def test_layers_hang_on_what_they_read():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    network = by_layers(fxgrow.inspect(net, VECTOR))
    assert [(node.name, node.op, node.size) for node in network.nodes] == [
        ("0", "Linear", 8),
        ("1", "BatchNorm1d", 8),
        ("3", "Linear", 3),
    ]
    assert network.edges == ((0, 1), (1, 2))


def test_network_of_a_residual_net(inspections):
    inspection = inspections["residual"]
    network = network_of(inspection)
    names = [node.name for node in network.nodes]
    adds = [i for i, node in enumerate(network.nodes) if node.op == "add"]
    assert adds
    for add in adds:  # where two values meet
        assert sum(target == add for _, target in network.edges) == 2
        assert not network.nodes[add].tensors
    assert "relu" not in {node.op for node in network.nodes}  # passes one value on
    stem = network.nodes[names.index("stem")]
    group = inspection.groups[stem.groups[0][0]]
    assert group.name == "stem"
    assert stem.groups[0][1] == stem.size == group.width
    assert network.nodes[adds[0]].groups == stem.groups


def test_sizes_lead_nowhere():
    class Sizes(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(self.a(x).reshape(x.shape[0], -1))

    network = network_of(fxgrow.inspect(Sizes(), VECTOR))
    assert [node.name for node in network.nodes] == ["x", "a", "b", "output"]
    assert network.edges == ((0, 1), (1, 2), (2, 3))


def test_shared_tensors_are_found_under_their_first_name():
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False))
    net[2].weight = net[0].weight
    network = network_of(fxgrow.inspect(net, VECTOR))
    assert users_of(network) == {"0.weight": [1, 2]}


# -------------------------------------------------------------------- layout


@st.composite
def networks(draw):
    count = draw(st.integers(1, 24))
    edges = set()
    for target in range(1, count):
        sources = draw(st.sets(st.integers(0, target - 1), max_size=3))
        edges |= {(source, target) for source in sources}
    tensors = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    nodes = [Node(str(i), "op", "", (), ("t",) * t, 0, ()) for i, t in enumerate(tensors)]
    beside = draw(st.sets(st.integers(0, count - 1)))
    return Network(tuple(nodes), tuple(sorted(edges))), beside


@settings(max_examples=150, deadline=None)
@given(networks())
def test_layout_has_no_overlaps(drawn):
    network, beside = drawn
    picture = lay_out(network, beside)
    rows = {}
    for box in picture.boxes:
        assert box.x >= 0
        assert box.x + box.width <= picture.width
        assert HALF <= box.y <= picture.height - HALF
        rows.setdefault(box.y, []).append(box)
    for boxes in rows.values():
        boxes.sort(key=lambda box: box.x)
        for left, right in pairwise(boxes):
            assert left.x + left.width <= right.x
    gaps = {b - a for a, b in pairwise(sorted(rows))}
    assert all(gap > 2 * HALF for gap in gaps)


@settings(max_examples=150, deadline=None)
@given(networks())
def test_wires_lead_down_and_run_through_no_box(drawn):
    network, beside = drawn
    picture = lay_out(network, beside)
    boxes = picture.boxes
    # what stands beside a layer is no end of its own
    hosts = {(a, b) for a, b in network.edges if boxes[a].y == boxes[b].y}
    assert len(picture.wires) == len(network.edges) - len(hosts)
    assert {b for _, b in hosts} <= beside
    for wire in picture.wires:
        assert boxes[wire.source].y < boxes[wire.target].y
        for (x, y), (x2, y2) in pairwise(wire.corners):
            assert x == x2 or y == y2  # no slant
            top, bottom = sorted((y, y2))
            crossed = [
                box
                for box in boxes
                if x == x2 and box.x < x < box.x + box.width and top < box.y < bottom
            ]
            assert not crossed


# ---------------------------------------------------------------------- HTML


class Elements(HTMLParser):
    """Counts elements, keeps attributes' names and the data of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.data = Counter(), set(), [], []
        self.current = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attributes}
        self.current = tag

    def handle_data(self, data):
        (self.scripts if self.current == "script" else self.data).append(data)


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "page.html"
    fxgrow.inspect(hostile(), VECTOR).to_html(path)
    return path


def test_names_are_only_text(hostile_page, tmp_path):
    tame = nn.Sequential(*(nn.Linear(6, 6) for _ in HOSTILE))
    fxgrow.inspect(tame, VECTOR).to_html(tmp_path / "tame.html")
    theirs = Elements((tmp_path / "tame.html").read_text(encoding="utf-8"))
    own = Elements(hostile_page.read_text(encoding="utf-8"))
    assert own.tags["script"] == 2
    for tags in (own.tags, theirs.tags):
        del tags["wbr"]  # names break after their dots
    assert own.tags == theirs.tags
    assert own.attributes == theirs.attributes
    data = json.loads(own.scripts[0])
    assert set(map(clean, HOSTILE)) <= set(data["nodes"])
    shown = "".join(own.data)
    assert "<script>alert(1)</script>" in shown  # text, after the parser has unescaped it
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e]", shown)


def test_page_loads_nothing_and_runs_only_its_own_script(hostile_page):
    text = hostile_page.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert re.search("script-src 'sha256-[A-Za-z0-9+/=]{44}'\"", text)
    assert not re.search(r"""(src|href)\s*=\s*["']|@import|url\(""", text)


def test_page_of_every_network(inspections, tmp_path):
    for name, inspection in inspections.items():
        inspection.to_html(tmp_path / f"{name}.html")
        text = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        elements = Elements(text)
        groups = len(inspection.groups) + len(inspection.frozen)
        assert text.count("<tr data-g=") == groups
        assert text.count('<g class="n') == len(network_of(inspection).nodes)
        data = json.loads(elements.scripts[0])
        assert len(data["groups"]) == groups
        for group, entry in zip(inspection.groups, data["groups"], strict=False):
            assert entry["params"] == group.params_per_unit
            assert {role for role in entry["nodes"] if role != "carries"} == {
                slot.role for slot in group.slots
            }
        for group in inspection.frozen:
            assert clean(group.reason.message.partition("(")[0]).strip() in "".join(elements.data)


def test_votes_activity_and_plan_are_shown(tmp_path):
    net, data = mlp(), [(VECTOR, torch.tensor([0, 1, 2, 0]))]
    inspection, votes, plan = fxgrow.plan_for(net, data, budget=5)
    inspection.to_html(tmp_path / "a.html", votes=votes, plan=plan, activity={"0": 0.75})
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    entry = json.loads(Elements(text).scripts[0])["groups"][0]
    assert (entry["votes"], entry["activity"], entry["after"]) == (votes.counts["0"], 0.75, 13)
    assert "75%" in text
    assert 'data-key="votes"' in text
    seen = SimpleNamespace(groups=[SimpleNamespace(name="0", active=np.array([1.0, 0.0, 0.5]))])
    assert "| 50% |" in inspection.to_markdown(activity=seen)  # as fxgrow.activity returns it
    inspection.to_html(tmp_path / "b.html")  # columns without figures are left out
    bare = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert 'data-key="votes"' not in bare
    assert 'data-key="activity"' not in bare


def test_page_of_a_growth(tmp_path):
    growth = fxgrow.widen(NETWORKS["residual"][0](), IMAGE, {"stem": 3})
    growth.to_html(tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    width = next(g.width for g in growth.inspection.groups if g.name == "stem")
    assert f"{width}→{width + 3}</text>" in text
    assert f'{width + 3:,} <span class="gain">+3</span>' in text
    totals = growth.report["totals"]
    for figure in (totals["params"], totals["new_params"]):
        assert f"<dd>{figure:,}</dd>" in text


def test_growths_from_files_and_transfers_are_shown(tmp_path):
    net = mlp()
    fxgrow.widen(net, VECTOR, 2).save(tmp_path / "a.safetensors")
    loaded = fxgrow.load(tmp_path / "a.safetensors", base=net)
    loaded.to_html(tmp_path / "a.html")
    assert '<svg id="net"' in (tmp_path / "a.html").read_text(encoding="utf-8")
    moved = fxgrow.transfer(net, mlp(12), VECTOR)
    moved.to_html(tmp_path / "b.html")
    text = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert '<svg id="net"' not in text
    assert "<b>12</b>" in moved._repr_html_()
    with pytest.raises(InputError, match=r"holds no graph; write \.html"):
        pages.write(moved, tmp_path / "b.dot")
    moved.save(tmp_path / "m.safetensors")
    again = fxgrow.load(tmp_path / "m.safetensors", base=mlp(12))
    assert "new units" in again.to_markdown()


def test_page_is_light_on_a_thousand_layers(tmp_path):
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

    fxgrow.inspect(Deep(), VECTOR).to_html(tmp_path / "deep.html")
    assert (tmp_path / "deep.html").stat().st_size < 2e6


# -------------------------------------------------------------- other formats


def test_markdown_tables_keep_their_columns():
    for net, example in ((hostile(), VECTOR), (NETWORKS["residual"][0](), IMAGE)):
        inspection = fxgrow.inspect(net, example)
        text = inspection.to_markdown()
        tables = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
        assert len(tables) == 2
        rows = 0
        for table in tables:
            lines = table.strip().splitlines()
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
            rows += len(lines) - 2
        assert rows == len(inspection.groups) + len(inspection.frozen)
        assert not re.search(r"<(?!br)\w", re.sub(r"(`+).*?\1", "", text))


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_code_spans_hold_any_text(text):
    span = code(text)
    assert "\n" not in span
    assert not re.search(r"(?<!\\)\|", span)
    if span:
        fence = re.match("`+", span)[0]
        inside = span[len(fence) : -len(fence)]
        assert span.endswith(fence)
        assert fence not in re.findall("`+", inside)


def test_graphml_is_read_back(tmp_path):
    for name, net, example in (
        ("hostile", hostile(), VECTOR),
        ("residual", NETWORKS["residual"][0](), IMAGE),
    ):
        inspection = fxgrow.inspect(net, example)
        inspection.to_graphml(tmp_path / f"{name}.graphml")
        read = nx.read_graphml(tmp_path / f"{name}.graphml")
        graph = inspection.graph
        assert (len(read), read.size()) == (len(graph), graph.size())
        kinds = Counter(data["kind"] for _, data in read.nodes(data=True))
        assert kinds == Counter(data["kind"] for _, data in graph.nodes(data=True))
        held = {n for _, data in read.nodes(data=True) for n in data["groups"].split(", ")}
        if name == "residual":
            assert held - {""} == {g.name for g in (*inspection.groups, *inspection.frozen)}


def test_dot_quotes_names():
    text = fxgrow.inspect(hostile(), VECTOR).to_dot()
    for line in text.splitlines():
        assert len(re.findall(r'(?<!\\)(?:\\\\)*"', line)) % 2 == 0


def test_notebooks_show_tables():
    # torch.fx writes Python code with names in it, so quotes and NUL can't grow
    net = hostile([name for name in HOSTILE if not set(name) & set('"\x00\n\\')])
    data = [(VECTOR, torch.tensor([0, 1, 2, 0]))]
    inspection, votes, plan = fxgrow.plan_for(net, data, budget=5)
    for shown in (inspection, votes, fxgrow.widen(net, VECTOR, plan)):
        elements = Elements(shown._repr_html_())
        assert set(elements.tags) <= {"div", "p", "b", "table", "tr", "th", "td", "code"}
        assert elements.attributes <= {"style"}
        assert "<script>alert(1)</script>" in "".join(elements.data)
    many = nn.Sequential(*(nn.Linear(6, 6) for _ in range(60)))
    assert "more groups" in fxgrow.inspect(many, VECTOR)._repr_html_()


@pytest.mark.parametrize("suffix", pages.FORMATS)
def test_write_goes_by_the_suffix(tmp_path, suffix):
    path = tmp_path / f"report{suffix}"
    for shown in (fxgrow.inspect(mlp(), VECTOR), fxgrow.widen(mlp(), VECTOR, 2)):
        pages.write(shown, path)
        assert path.stat().st_size > 200
    starts = {".html": "<!doctype", ".md": "# ", ".json": "{", ".graphml": "<?xml", ".dot": "graph"}
    assert path.read_text(encoding="utf-8").startswith(starts[suffix])


def test_write_refuses_other_suffixes(tmp_path):
    with pytest.raises(FileError, match=r"report\.pdf: a report ends in \.html"):
        pages.write(fxgrow.inspect(mlp(), VECTOR), tmp_path / "report.pdf")
    assert not list(tmp_path.iterdir())


def test_parts_of_the_page_are_installed():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    patterns = re.search(r"^fxgrow = (\[.*\])", text[text.index("package-data") :], re.MULTILINE)[1]
    listed = {path for p in json.loads(patterns) for path in (ROOT / "fxgrow").glob(p)}
    others = {
        path
        for path in (ROOT / "fxgrow").rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert others <= listed


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9999, "9,999"), (12345, "12.3 k"), (1843200, "1.84 M"), (2.5e12, "2.50 T")],
)
def test_short_numbers(number, text):
    assert short(number) == text


@given(st.text(max_size=40), st.integers(1, 30))
def test_shortened_names_fit(name, most):
    text = shortened(name, most)
    assert len(text) <= most
    assert text == name or name.endswith(text[1:])
