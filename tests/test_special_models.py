"""Models that something was done to: compiled, checkpointed, parametrised, pruned, frozen.

Each is handled exactly, or frozen with the reason; docs/models.md lists them.
"""

from __future__ import annotations

import copy
import re
import sys
from collections import Counter

import networks_special as special
import pytest
import test_asked_types
import test_einops
import test_heads
import test_jointly
import test_mechanisms
import test_own_code
import test_peaks
import test_positions
import test_recurrent
import test_repeats
import test_rules
import test_seams
import test_silent_mistakes
import test_standard
import test_streams
import test_tables
import test_untraceable
import test_user_rules
import torch
from checks import backward, difference, doubled, errors, outputs, run, step, untrained
from conftest import ROOT
from handmade import data, mlp
from networks_special import HANDLED, PARTLY
from torch import nn
from torch.nn.utils import parametrize, prune

import fxgrow
from fxgrow.plain import plain
from fxgrow.rewrite import rewrite
from fxgrow.swe import adjust
from fxgrow.verify import verify
from fxgrow.vote import cast_votes

EXACT = 1e-10
# Said by reentrant checkpoints under no_grad, which these tests compare outputs under.
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
LOW = [torch.bfloat16, torch.float16]


def build(name):
    factory, example = (HANDLED.get(name) or PARTLY[name])[:2]
    torch.manual_seed(0)
    return factory().double(), doubled(example)


def additions(groups, units=2):
    return {g.name: step(g, units) for g in groups}


def writers(groups):
    """Layers that write the groups' units."""
    named = {s.tensor: g for g in groups for s in g.slots if s.role == "producer"}
    return {re.sub(r"\.parametrizations\..*", ".weight", t).rpartition(".")[0] for t in named}


def is_compiled(model):
    return any("_orig_mod" in name for name, _ in model.named_modules())


def check_growth(model, example, groups, emit):
    growth = fxgrow.widen(model, example, additions(groups), emit=emit)
    assert growth.verification.passed
    assert max(errors(plain(model), growth.module, example)) <= EXACT
    assert not is_compiled(growth.module)
    names = [n.replace("_orig_mod.", "") for n in model.state_dict()]
    assert list(growth.module.state_dict()) == names
    assert set(growth.index_map.axes) <= {n for n in names if n in dict(tensors_of(growth.module))}
    return growth


def tensors_of(module):
    return [*module.named_parameters(), *module.named_buffers()]


@pytest.mark.parametrize("name", HANDLED)
def test_handled(name):
    """All groups together, as a graph: exact in both modes, and every new entry trains."""
    model, example = build(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    inspection = fxgrow.inspect(model, example)
    assert {g.reason.code for g in inspection.frozen} <= {"output", "input", "unlabelled"}
    assert inspection.groups
    growth = check_growth(model, example, inspection.groups, "graph")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in growth.module.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    assert untrained(growth.module, growth.groups, example) == []


@pytest.mark.parametrize("name", HANDLED)
def test_handled_in_the_users_class(name):
    model, example = build(name)
    growth = check_growth(model, example, fxgrow.inspect(model, example).groups, "module")
    assert type(growth.module) is type(plain(model))


@pytest.mark.parametrize("name", [*HANDLED, *PARTLY])
def test_each_group_alone(name):
    model, example = build(name)
    inspection = fxgrow.inspect(model, example)
    for group in inspection.groups:
        grown = rewrite(model, inspection, {group.name: step(group, 1)})
        assert max(errors(plain(model), grown.module, example)) <= EXACT, group.name


@pytest.mark.parametrize("name", PARTLY)
def test_frozen_with_the_reason(name):
    """What can't grow says why; the rest grows exactly."""
    model, example = build(name)
    grows, frozen = PARTLY[name][2:]
    inspection = fxgrow.inspect(model, example)
    assert writers(inspection.groups) == grows
    reasons = [(layer, g.reason.code) for g in inspection.frozen for layer in g.layers]
    for layer, code in frozen.items():
        assert (layer, code) in reasons
    if inspection.groups:
        growth = check_growth(model, example, inspection.groups, "graph")
        check_growth(model, example, inspection.groups, "module")
        assert untrained(growth.module, growth.groups, example) == []
    else:
        with pytest.raises(fxgrow.NothingToGrow):
            fxgrow.widen(model, example, 2)


@pytest.mark.parametrize(
    "name",
    ["compiled", "checkpoint_in_training", "weight_norm_old", "pruned_twice", "resting_producer"],
)
def test_expand(name):
    """The whole way: votes, growth, adjusting."""
    model, example = build(name)
    targets = torch.randint(3, (len(example),))
    growth = fxgrow.expand(model, [(example, targets)] * 2, budget=6)
    assert sum(growth.plan.additions.values()) == 6
    assert all(torch.isfinite(p).all() for p in growth.module.parameters())
    gone = copy.deepcopy(growth.module)  # hooks leave tensors that deepcopy must get over
    assert difference(outputs(growth.module, example), outputs(gone, example)) == 0.0


# -- compiled --------------------------------------------------------------------------


def test_compiled_again():
    model, example = build("compiled_child")
    new = fxgrow.widen(model, example, 2).module
    expected = outputs(new, example)
    assert difference(expected, [special.eager(new)(example)]) <= EXACT


def test_checkpointed_graph_can_be_compiled():
    model, example = build("checkpoint")
    new = fxgrow.widen(model, example, 2).module
    compiled = torch.compile(new, backend="aot_eager")
    compiled(example).square().mean().backward()
    found = [p.grad.clone() for p in new.parameters()]
    new.zero_grad()
    new(example).square().mean().backward()
    assert difference([p.grad for p in new.parameters()], found) <= EXACT


# -- checkpointed ----------------------------------------------------------------------


@pytest.mark.parametrize("emit", ["graph", "module"])
@pytest.mark.parametrize("name", [n for n in HANDLED if n.startswith("checkpoint")])
def test_checkpoints_are_kept(name, emit):
    """In the backward pass the checkpointed layers run again, others don't; same gradients."""
    model, example = build(name)
    new = fxgrow.widen(model, example, 2, emit=emit).module
    again = fxgrow.widen(new, example, 2, emit=emit).module  # and through a second growth
    counts = []
    for module in (model, new, again):
        calls: Counter[str] = Counter()
        handles = [
            part.register_forward_hook(lambda *_, key=key, calls=calls: calls.update([key]))
            for key, part in module.named_modules()
            if not list(part.children())
        ]
        backward(module, example)
        for handle in handles:
            handle.remove()
        counts.append(calls)
    twice = [{key for key, count in calls.items() if count == 2} for calls in counts]
    assert twice[0] and twice[1] and twice[1] == twice[2]
    assert twice[0] < set(counts[0])
    # A graph's checkpoints stop where nothing more is needed, as those not reentrant do.
    assert twice[1] <= twice[0] if "reentrant" in name else twice[1] == twice[0]


def test_checkpointed_gradients():
    model, example = build("checkpoint_in_training")
    new = fxgrow.widen(model, example, 2).module
    copied = copy.deepcopy(new)
    for module in (new, copied):
        backward(module, example)
    backward(model, example)
    for (name, p), q in zip(new.named_parameters(), copied.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    grads = dict(new.named_parameters())
    assert torch.allclose(grads["head.bias"].grad, model.head.bias.grad, atol=1e-12)


# -- half precision --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", LOW)
def test_half_precision(dtype):
    """Types stay, the check is made in float32, and a wrong model does not pass it."""
    torch.manual_seed(0)
    model, example = special.convnet().to(dtype), special.IMAGE.to(dtype)
    growth = fxgrow.widen(model, example, 3)
    assert {t.dtype for _, t in tensors_of(growth.module)} == {dtype, torch.int64}
    assert growth.verification.dtype == "float32"
    assert growth.verification.eval_error < 1e-5
    with torch.no_grad():
        growth.module.get_submodule("8").weight[:, -1] += 0.05
    assert not verify(model, growth.module, example).passed


class CastsByHand(nn.Module):
    """Norms in float32, the rest in bfloat16."""

    def __init__(self):
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 6, 3).bfloat16(), nn.BatchNorm2d(6)
        self.b = nn.Linear(6, 3).bfloat16()

    def forward(self, x):
        x = self.n(self.a(x.bfloat16()).float()).relu().mean((2, 3))
        return self.b(x.bfloat16())


def test_mixed_precision():
    model = CastsByHand()
    growth = fxgrow.widen(model, special.IMAGE, 3)
    assert growth.verification.passed
    assert growth.verification.dtype == "bfloat16"
    assert [t.dtype for _, t in tensors_of(growth.module)] == [
        t.dtype for _, t in tensors_of(model)
    ]


@pytest.mark.parametrize("dtype", LOW)
def test_half_precision_expands(dtype):
    """Optimizers run in float32: float16 gives no NaN."""
    torch.manual_seed(0)
    model = special.mlp().to(dtype)
    growth = fxgrow.expand(model, data((6,), classes=3, dtype=dtype), budget=6)
    assert all(p.dtype == dtype and torch.isfinite(p).all() for p in growth.module.parameters())
    assert sum(growth.votes.counts.values())
    assert all(v.any() for v in growth.votes.values.values())


def test_small_steps_add_up_in_half_precision():
    """Each step is below the rounding of a bfloat16 weight, many of them are not."""
    module, grown = mlp((8,), (3,), dtype=torch.bfloat16)
    with torch.no_grad():
        module[2].weight[:, :8].fill_(0.75)
    before = module[2].weight.detach().clone()
    adjust(module, grown, data(dtype=torch.bfloat16), epochs=10, lr=2e-4)
    assert 0.75 + torch.finfo(torch.bfloat16).eps * 0.75 / 2 > 0.75 + 2e-4
    assert (module[2].weight != before)[:, :8].float().mean() > 0.2


def test_means_of_many_half_precision_entries():
    model = nn.Sequential(nn.Conv2d(3, 2000, 1), nn.BatchNorm2d(2000), nn.Conv2d(2000, 3, 1))
    with torch.no_grad():
        model[1].running_var.uniform_(50, 150)
    model = model.to(torch.float16)
    new = fxgrow.widen(model, special.IMAGE[:, :, :2, :2].half(), {"0": 2}).module
    mean = model[1].running_var.double().mean()
    assert abs(new.get_submodule("1").running_var[-1].double() - mean) < 0.1


# -- frozen parts ----------------------------------------------------------------------


def test_resting_rows_are_judged_but_never_stepped():
    module, grown = mlp((8, 6), (3, 2))
    module[0].weight.requires_grad_(False)
    module[0].bias.requires_grad_(False)
    from handmade import ungrown

    groups = [ungrown(g) for g in grown]
    old = module[0].weight.detach().clone()
    votes = cast_votes(module, grown, groups, data(), budget=4)
    assert torch.equal(module[0].weight[:8], old[:8])
    assert not torch.equal(module[2].weight[:, :8], torch.zeros_like(module[2].weight[:, :8]))
    assert votes.values["h0"].any()


def test_groups_that_could_never_train_get_no_votes():
    model, example = build("resting_both")
    votes = fxgrow.vote(model, [(example, torch.zeros(4, dtype=torch.long))], budget=4)
    assert set(votes.counts) == {"2"}
    with pytest.raises(fxgrow.InputError, match="requires gradients"):
        fxgrow.widen(model, example, {"0": 2})


def test_nothing_requires_gradients():
    """A model at rest as a whole is widened by hand, but can't vote."""
    model, example = special.mlp().requires_grad_(False), special.VECTOR
    growth = fxgrow.widen(model, example, 2)
    assert not any(p.requires_grad for p in growth.module.parameters())
    with pytest.raises(fxgrow.NothingToGrow, match="requires gradients"):
        fxgrow.vote(model, data((6,), classes=3, dtype=torch.float32), budget=4)


def test_growth_is_loaded_onto_a_model_put_to_rest(tmp_path):
    model, example = special.mlp(), special.VECTOR
    fxgrow.widen(model, example, 2).save(str(tmp_path / "grown.safetensors"))
    model[2].requires_grad_(False)
    back = fxgrow.load(str(tmp_path / "grown.safetensors"), base=model).module
    assert [p.requires_grad for p in back.parameters()] == [True, True, False, False, True, True]


# -- shared ----------------------------------------------------------------------------


def test_sharing_is_kept():
    model, example = build("shared")
    for emit in ("graph", "module"):
        new = fxgrow.widen(model, example, 2, emit=emit).module
        assert new.again is new.b
        assert new.d.weight is new.c.weight


# -- parametrised and pruned -----------------------------------------------------------


def test_parametrisations_stay_and_tell_the_truth():
    model, example = build("weight_norm_conv")
    for emit in ("graph", "module"):
        new = fxgrow.widen(model, example, 2, emit=emit).module
        layer = new.get_submodule("3")
        assert parametrize.is_parametrized(layer, "weight")
        assert (layer.in_channels, layer.out_channels) == (8, 10) == layer.weight.shape[1::-1]


def test_hooks_compute_the_weight_anew():
    model, example = build("weight_norm_old")
    new = fxgrow.widen(model, example, 2).module
    layer = new.get_submodule("2")
    assert (layer.in_features, layer.out_features) == (10, 11)
    with torch.no_grad():
        layer.weight_g.mul_(2)
        run(new, example)
    norms = layer.weight.norm(dim=1, keepdim=True)
    assert torch.allclose(norms, layer.weight_g.abs())


@pytest.mark.parametrize("name", [n for n in HANDLED if n.startswith(("pruned", "parametrised_m"))])
def test_masks_are_open_for_new_entries(name):
    model, example = build(name)
    growth = fxgrow.widen(model, example, 2)
    old, new = dict(model.named_buffers()), dict(growth.module.named_buffers())
    masks = [n for n in old if "mask" in n and n in growth.index_map.axes]
    assert masks
    for mask in masks:
        assert torch.equal(growth.index_map.apply(mask, old[mask], fill=1.0), new[mask])
        assert not new[mask].all()


def test_dead_units_stay_dead():
    model, example = build("pruned_rows")
    new = fxgrow.widen(model, example, 2).module
    dead = (model[0].weight_mask == 0).all(dim=1)
    assert dead.any()
    backward(new, example)
    assert not new.get_submodule("0").weight_orig.grad[: len(dead)][dead].any()


def test_hooks_that_compute_the_outermost_weight_are_refused():
    model = special.OwnWeight()
    with pytest.raises(fxgrow.TraceError, match="'w' of the outermost module"):
        fxgrow.inspect(model, special.VECTOR)
    prune.remove(model, "w")
    assert fxgrow.inspect(model, special.VECTOR).groups


# -- buffers ---------------------------------------------------------------------------


def test_a_permutation_in_a_buffer_is_refused():
    model = special.Permuted()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(fxgrow.UnsupportedError, match="getitem"):
        fxgrow.widen(model, special.VECTOR, 2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_buffer_cut_to_the_input_follows_it():
    model, tokens = build("positions")
    new = fxgrow.widen(model, tokens, 2).module
    longer = torch.randint(11, (3, 7))
    assert difference(outputs(model, longer), outputs(new, longer)) <= EXACT


# -- the table in the documentation ----------------------------------------------------


def test_every_line_of_the_table_names_a_test():
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.match(r"\| (?!What|---)", line)]
    assert len(lines) >= 20
    homes = {
        "": sys.modules[__name__],
        "einops": test_einops,
        "recurrent": test_recurrent,
        "rules": test_user_rules,
        "heads": test_heads,
        "joint": test_jointly,
        "peaks": test_peaks,
        "positions": test_positions,
        "standard": test_standard,
        "tables": test_tables,
        "mechanisms": test_mechanisms,
        "operations": test_rules,
        "code": test_own_code,
        "streams": test_streams,
        "mistakes": test_silent_mistakes,
        "types": test_asked_types,
        "seams": test_seams,
        "repeats": test_repeats,
        "untraced": test_untraceable,
    }
    for line in lines:
        home, test, case = re.search(
            r"\| (?:(\w+): )?`(test_\w+)(?:\[(\w+)\])?` \|$", line
        ).groups()
        assert callable(vars(homes[home or ""]).get(test)), line
        assert case is None or case in {**HANDLED, **PARTLY}, line
