"""Values of a fixed width that are added to a stream, such as positions: the stream grows."""

from __future__ import annotations

import copy

import pytest
import torch
from checks import difference, doubled, errors, outputs, randomised, step, untrained
from networks_positions import HELD, IMAGE, NETWORKS, TOKENS, VIDEO, Modes, OfSize, Plain

import fxgrow
from fxgrow.errors import UnsupportedError
from fxgrow.export import export

EXACT = 1e-10
ANY = [name for name, (_, _, recipe) in NETWORKS.items() if recipe != "copies"]
# Groups whose code needs no new node: a class of the user's can hold them.
OWN = {"buffer", "looked up"}


def build(name):
    factory, example, recipe = NETWORKS[name]
    torch.manual_seed(0)
    return randomised(factory()), doubled(example), recipe


def first(inspection):
    """The stream: what is written first."""
    return next(g for g in inspection.groups if g.layers[0] in {"stem", "a"})


def all_of(inspection, units):
    return {g.name: step(g, units) for g in inspection.groups}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_alone(name):
    model, example, recipe = build(name)
    inspection = fxgrow.inspect(model, example)
    assert first(inspection).recipe == recipe or name == "half a norm"
    for group in inspection.groups:
        growth = fxgrow.widen(model, example, {group.name: step(group, 3)})
        assert max(errors(model, growth.module, example)) <= EXACT
        assert untrained(growth.module, growth.groups, example) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_all_at_once_and_twice(name):
    """The second time, too, what is placed stays with the units that it was computed for."""
    model, example, _ = build(name)
    wide = model
    for units in (3, 1):
        inspection = fxgrow.inspect(wide, example)
        growth = fxgrow.widen(wide, example, all_of(inspection, units))
        wide = growth.module
        assert first(inspection).name in growth.plan.additions
    assert max(errors(model, wide, example)) <= EXACT
    assert untrained(wide, growth.groups, example) == []


LONGER = {id(TOKENS): (3, 9, 4), id(IMAGE): (1, 3, 7, 5), id(VIDEO): (3, 3, 3, 2, 5)}


@pytest.mark.parametrize("name", [n for n in ANY if n != "both ways"])  # its length is a width
def test_batch_and_length_stay_free(name):
    model, example, _ = build(name)
    given = NETWORKS[name][1]
    shape = LONGER[id(given[0] if isinstance(given, tuple) else given)]
    growth = fxgrow.widen(model, example, all_of(fxgrow.inspect(model, example), 5))
    other = torch.randn(shape, dtype=torch.float64)
    if isinstance(given, tuple):
        other = (other, torch.rand(shape[:2]) < 0.7)
    assert max(errors(model, growth.module, other)) <= EXACT


@pytest.mark.parametrize("name", ["of shape", "filled", "joined", "half a norm", "modes"])
def test_files(name, tmp_path):
    model, example, _ = build(name)
    growth = fxgrow.widen(model, example, all_of(fxgrow.inspect(model, example), 3))
    growth.save(tmp_path / "grown.safetensors")
    loaded = fxgrow.load(tmp_path / "grown.safetensors", base=copy.deepcopy(model)).module
    assert max(errors(model, loaded, example)) <= EXACT
    assert max(errors(growth.module, copy.deepcopy(growth.module), example)) == 0


@pytest.mark.parametrize("name", ["of shape", "filled", "half a norm", "maps"])
def test_export(name):
    model, example, _ = build(name)
    growth = fxgrow.widen(model, example, all_of(fxgrow.inspect(model, example), 3))
    module = growth.module.eval()
    program = torch.export.export(module, (example,)).module()
    assert difference(outputs(model, example), [program(example)]) <= EXACT


@pytest.mark.parametrize("name", ["of shape", "pixels", "softened"])
def test_package(name, tmp_path):
    """Guards of sizes are part of it."""
    model, example, _ = build(name)
    growth = fxgrow.widen(model, example, all_of(fxgrow.inspect(model, example), 3))
    made = export(growth.module, example, tmp_path / "grown_net", format="python", tolerance=EXACT)
    assert made.checks


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in OWN])
def test_own_class_stays_with_the_reason(name):
    """A class of the user's computes its positions at the width that it has."""
    model, example, _ = build(name)
    group = first(fxgrow.inspect(model, example))
    with pytest.raises(UnsupportedError, match=r"fixed width.*emit='graph'"):
        fxgrow.widen(model, example, {group.name: step(group, 3)}, emit="module")
    try:
        growth = fxgrow.widen(model, example, "+40%", emit="module")
    except fxgrow.FxgrowError as error:
        assert "no group" in str(error)
        return
    assert group.name not in growth.plan.additions
    assert max(errors(model, growth.module, example)) <= EXACT


def test_transfer_is_refused_with_the_reason():
    """Each of two models computes its own positions."""
    torch.manual_seed(0)
    models = [randomised(Plain(width=width)) for width in (8, 16)]
    with pytest.raises(UnsupportedError, match="can't grow"):
        fxgrow.transfer(*models, doubled(TOKENS))


@pytest.mark.parametrize("name", sorted(OWN))
def test_buffers_grow_in_own_classes(name):
    model, example, _ = build(name)
    growth = fxgrow.widen(model, example, {"stem": 3}, emit="module")
    table = growth.module.table
    assert torch.allclose(table[:, 8:], table[:, :8].mean(1, keepdim=True).expand(-1, 3))
    assert max(errors(model, growth.module, example)) <= EXACT


@pytest.mark.parametrize("name", HELD)
def test_what_may_depend_on_the_width_is_frozen(name):
    factory, example, layer, code = HELD[name]
    torch.manual_seed(0)
    model, example = randomised(factory()), doubled(example)
    inspection = fxgrow.inspect(model, example)
    held = {g.name: g.reason.code for g in inspection.frozen}
    assert held[layer] == code
    growth = fxgrow.widen(model, example, all_of(inspection, 2))
    assert max(errors(model, growth.module, example)) <= EXACT


def test_heads_with_slopes_leave_the_stream_free():
    factory, example, *_ = HELD["slopes"]
    torch.manual_seed(0)
    model, example = randomised(factory()), doubled(example)
    growth = fxgrow.widen(model, example, {"stem": 3})
    assert max(errors(model, growth.module, example)) <= EXACT


class Kept(torch.fx.Interpreter):
    """Remembers what every node computed."""

    def __init__(self, module):
        super().__init__(module, garbage_collect_values=False)
        self.found = {}

    def run_node(self, n):
        self.found[n.name] = super().run_node(n)
        return self.found[n.name]


@pytest.mark.parametrize("name", ["plain", "of shape"])
def test_new_units_get_zeros_or_the_mean(name):
    """Zeros where no norm takes a mean, else the mean over the old units."""
    model, example, _ = build(name)
    module = fxgrow.widen(model, example, {"stem": 2}).module
    kept = Kept(module)
    kept.run(example)
    placed = kept.found[next(n for n in module.graph.nodes if n.name == "add").args[1].name]
    old, new = placed[:, :-2], placed[:, -2:]
    wanted = torch.zeros_like(old) if name == "plain" else old.mean(1, keepdim=True)
    assert (new - wanted[:, :1]).abs().max() < 1e-15
    assert torch.equal(old, model.positions(model.stem(example)).to(old))


def test_positions_are_what_training_code_sees():
    """Both modes have graphs of their own, and what is placed in both."""
    torch.manual_seed(0)
    model, example = randomised(Modes()), doubled(TOKENS)
    module = fxgrow.widen(model, example, {"stem": 3}).module
    assert module.train_graph is not module.graph
    for graph in (module.graph, module.train_graph):
        assert any(n.target is torch.cat and len(n.args[0]) == 2 for n in graph.nodes)


def test_half_precision_takes_no_mean():
    """A mean that is rounded is none: the units of the stream are copied."""
    torch.manual_seed(0)
    model, example = OfSize().bfloat16(), TOKENS.bfloat16()
    group = first(fxgrow.inspect(model, example))
    assert group.recipe == "copies"


def test_edits_tell():
    model, example, _ = build("of shape")
    growth = fxgrow.widen(model, example, {"stem": 3})
    assert any("stays with the old units, new: their mean" in e for e in growth.report["edits"])
    assert any("sizes as they were" in e for e in growth.report["edits"])
