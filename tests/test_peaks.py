"""Reductions over channels that are neither means nor layer norms: maxima, norms, sums."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from checks import doubled, errors, randomised, step, untrained
from exactly import EXACT, grows_exactly
from networks_peaks import (
    ECA,
    NO_ECA,
    NORMS,
    PICTURE,
    TOLD,
    VECTORS,
    Batched,
    Cosine,
    EcaBlocks,
    Embedded,
    Heads,
    Normed,
    OneHead,
    Positions,
    SecondMode,
    Shared,
    Told,
)

import fxgrow


def built(make, example):
    torch.manual_seed(0)
    return randomised(make()), doubled(example)


def recipe_of(model, example, name):
    group = fxgrow.inspect(model, example).group(name)
    return group.recipe, group.multiple_of


def codes(model, example):
    return {g.reason.code for g in fxgrow.inspect(model, example).frozen}


@pytest.mark.parametrize("name", TOLD)
def test_maxima_and_sums_over_channels_grow_by_copies(name):
    model, example = built(lambda: Told(TOLD[name]), PICTURE)
    assert recipe_of(model, example, "a") == ("copies", 6)
    grows_exactly(model, example)


@pytest.mark.parametrize("name", ["max", "max_min_mean", "max_pool"])
def test_a_maximum_of_what_can_be_a_mean_grows_by_any_number(name):
    """A mean is never larger than the largest."""
    model, example = built(lambda: Normed(nn_of(TOLD[name])), VECTORS)
    assert recipe_of(model, example, "stem")[1] in {1, 6}
    grows_exactly(model, example)


def nn_of(tell):
    return lambda x: x * tell(x.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2).sigmoid()


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("name", NORMS)
def test_streams_under_norms_grow_by_zeros(name, gain):
    model, example = built(lambda: Normed(NORMS[name], gain), VECTORS)
    assert recipe_of(model, example, "stem") == ("zero", 1)
    grows_exactly(model, example)


@pytest.mark.parametrize("name", sorted(NORMS.keys() - {"by_sizes"}))
def test_norms_of_activations_grow_by_copies(name):
    model, example = built(lambda: Embedded(NORMS[name]), VECTORS)
    assert recipe_of(model, example, "a") == ("copies", 6)
    grows_exactly(model, example)


def test_norms_of_other_orders_are_frozen():
    model, example = built(lambda: Embedded(NORMS["by_sizes"]), VECTORS)
    assert "sum" in codes(model, example)
    model, example = built(lambda: Told(lambda x: x.norm(3, 1, keepdim=True)), PICTURE)
    assert "p_norm" in codes(model, example)


def test_the_smallest_norm_follows():
    """Vectors that are shorter than eps are divided by eps."""
    model, example = built(
        lambda: Embedded(lambda x: F.normalize((x - 0.1) * 1e-12, dim=-1)), VECTORS
    )
    grown = fxgrow.widen(model, example, {"a": 6}, verify=False)
    assert max(errors(model, grown.module, example)) <= EXACT


def test_normalised_rows_read_new_units_with_zeros():
    model, example = built(Cosine, VECTORS)
    assert recipe_of(model, example, "a") == ("fresh", 1)
    grows_exactly(model, example)
    model, example = built(lambda: Cosine(0), VECTORS)
    assert recipe_of(model, example, "a") == ("fresh", 1)
    grows_exactly(model, example)


@pytest.mark.parametrize("code", ["mean", "amax", "std", "var"])
def test_what_is_told_of_shared_columns_is_frozen(code):
    """Copies split the columns that read them: their mean is another then."""
    model, example = built(lambda: Shared(lambda w: getattr(torch, code)(w, 1)), VECTORS)
    assert code in codes(model, example)
    assert "a" not in {g.name for g in fxgrow.inspect(model, example).groups}


@pytest.mark.parametrize("make", [Positions, lambda: Positions(second=False), SecondMode])
def test_where_a_maximum_is_changes_with_copies(make):
    model, example = built(make, VECTORS)
    assert {"max", "argmax"} & codes(model, example)
    assert "a" not in {g.name for g in fxgrow.inspect(model, example).groups}


@pytest.mark.parametrize("name", ["norms", "sums", "deviation"])
def test_factors_for_copies_come_back_from_files(name, tmp_path):
    model, example = built(lambda: Told(TOLD[name]), PICTURE)
    growth = fxgrow.widen(model, example, {"a": 6})
    growth.save(tmp_path / "grown.safetensors")
    loaded = fxgrow.load(tmp_path / "grown.safetensors", base=model)
    assert max(errors(growth.module, loaded.module, example)) == 0.0
    more = fxgrow.widen(growth.module, example, {"a": 24})
    assert max(errors(model, more.module, example)) <= EXACT


def test_in_the_users_class_what_is_made_up_for_in_a_graph_is_refused():
    model, example = built(lambda: Told(TOLD["norms"]), PICTURE)
    with pytest.raises(fxgrow.errors.UnsupportedError, match="norms or variances over units"):
        fxgrow.widen(model, example, {"a": 6}, emit="module")
    model, example = built(lambda: Told(TOLD["max_min_mean"]), PICTURE)
    own = fxgrow.widen(model, example, {"a": 6}, emit="module")
    assert type(own.module) is Told
    assert max(errors(model, own.module, example)) <= EXACT
    assert step(fxgrow.inspect(model, example).group("a")) == 6


@pytest.mark.parametrize("name", ["normalize", "by_sum"])
def test_batch_norms_may_write_the_zeros(name):
    """Their weights and biases do; without those, units can only be copied."""
    model, example = built(lambda: Batched(NORMS[name]), VECTORS)
    inspection = fxgrow.inspect(model, example)
    zeros = {s.tensor for s in inspection.group("a").slots if s.filling.kind == "zero"}
    assert zeros == {"batch.weight", "batch.bias"}
    grows_exactly(model, example)
    model, example = built(lambda: Batched(NORMS[name], affine=False), VECTORS)
    assert recipe_of(model, example, "a") == ("copies", 6)
    grows_exactly(model, example)


@pytest.mark.parametrize("fused", [True, False])
def test_a_single_head_of_batch_normalised_queries_grows(fused):
    model, example = built(lambda: OneHead(fused), VECTORS)
    assert {"q", "v"} <= {g.name for g in fxgrow.inspect(model, example).groups}
    grows_exactly(model, example)
    growth = fxgrow.widen(model, example, {"q": 2})
    new = growth.module.get_parameter
    assert not new("nq.weight")[4:].any() and not new("nq.bias")[4:].any()
    assert new("nk.weight")[4:].all()
    model, example = built(lambda: OneHead(fused, affine=(False, True)), VECTORS)
    grown = fxgrow.widen(model, example, {"q": 2}).module
    assert not grown.get_parameter("nk.weight")[4:].any()
    model, example = built(lambda: OneHead(fused, affine=(False, False)), VECTORS)
    assert "product" in codes(model, example)


def test_heads_of_batch_normalised_queries_grow_inside():
    model, example = built(lambda: Heads(fused=False), VECTORS)
    inspection = fxgrow.inspect(model, example, inner=["*"])
    additions = {g.name: step(g) for g in inspection.groups if ":inner" in g.name}
    assert len(additions) == 2
    growth = fxgrow.widen(model, example, additions, inner=["*"])
    assert max(errors(model, growth.module, example)) <= EXACT
    assert untrained(growth.module, growth.groups, example) == []


@pytest.mark.parametrize("extender", ["gradmax", "net2wider", "paired", "active"])
@pytest.mark.parametrize("name", ["one_head", "batched", "branches", "norms"])
def test_extenders_keep_these_zeros_and_copies(name, extender):
    make, example = {
        "one_head": (lambda: OneHead(fused=True), VECTORS),
        "batched": (lambda: Batched(NORMS["normalize"]), VECTORS),
        "branches": (EcaBlocks, PICTURE),
        "norms": (lambda: Told(TOLD["norms"]), PICTURE),
    }[name]
    model, example = built(make, example)
    data = [(example, torch.randn_like(model(example)))] * 2
    growth = fxgrow.expand(model, data, budget=18, extender=extender, distributor="uniform")
    assert growth.plan.additions
    assert max(errors(model, growth.module, example)) <= EXACT


@pytest.mark.parametrize("name", ECA)
def test_convolutions_along_the_channels_find_zeros_at_the_end(name):
    make, first, recipe = ECA[name]
    model, example = built(make, PICTURE)
    assert recipe_of(model, example, first) == (recipe, 1)
    grows_exactly(model, example)
    once = fxgrow.widen(model, example, {first: 3})
    twice = fxgrow.widen(once.module, example, {first: 2})
    assert max(errors(model, twice.module, example)) <= EXACT
    own = fxgrow.widen(model, example, {first: 3}, emit="module")
    assert max(errors(model, own.module, example)) <= EXACT


@pytest.mark.parametrize("name", NO_ECA)
def test_where_neighbours_would_not_be_zero_they_are_frozen(name):
    make, code = NO_ECA[name]
    model, example = built(make, PICTURE)
    assert code in codes(model, example)
    assert not {"a", "stem"} & {g.name for g in fxgrow.inspect(model, example).groups}


def test_only_the_branch_is_zero():
    """New units get their values from what the branch is added to."""
    model, example = built(EcaBlocks, PICTURE)
    new = fxgrow.widen(model, example, {"stem": 2}).module.get_parameter
    for i in range(2):
        assert not new(f"norms.{i}.weight")[6:].any() and not new(f"norms.{i}.bias")[6:].any()
    assert new("norm.weight")[6:].all() and new("stem.weight")[6:].any()
