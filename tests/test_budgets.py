"""Budgets as people write them."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxgrow
from fxgrow.budgets import budget_of, parse_budget
from fxgrow.errors import BudgetError, InputError

SCALES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
UNITS = {"": None, "neurons": "neurons", "params": "params", "FLOPs": "flops", "flop": "flops"}


@pytest.mark.parametrize(
    ("text", "size", "amount", "unit"),
    [
        ("512", 0, 512, None),
        ("+512", 0, 512, None),
        ("2Mparams", 0, 2e6, "params"),
        ("2 M params", 0, 2e6, "params"),
        ("1.5GFLOPs", 0, 1.5e9, "flops"),
        ("+25%", 400, 100, None),
        ("25 %", 400, 100, None),
        ("1.5x", 400, 200, None),
        ("1.5×params", 400, 200, "params"),
        ("+29%", 100, 29, None),
        ("1_000", 0, 1000, None),
        ("1e6flops", 0, 1e6, "flops"),
    ],
)
def test_examples(text, size, amount, unit):
    parsed = parse_budget(text)
    assert (parsed.of(size), parsed.unit) == (amount, unit)


@given(
    st.decimals(0, 10**6, allow_nan=False, allow_infinity=False, places=3),
    st.sampled_from(sorted(SCALES)),
    st.sampled_from(sorted(UNITS)),
    st.sampled_from(["", " "]),
    st.booleans(),
)
def test_absolute(number, scale, unit, blank, lower):
    text = f"{number}{scale}{unit}{blank}"
    parsed = parse_budget(text.lower() if lower else text)
    assert parsed.unit == UNITS[unit]
    assert not parsed.relative
    if number:
        expected = float(Fraction(str(number)) * int(SCALES[scale]))
        assert parsed.of(0) == parsed.of(10**9) == expected
    else:
        with pytest.raises(BudgetError, match="positive"):
            parsed.of(10**9)


@given(st.integers(1, 10**5), st.integers(1, 10**12))
def test_shares_and_factors_agree(percent, size):
    share = parse_budget(f"+{percent}%").of(size)
    assert share == float(Fraction(percent, 100) * size)
    factor = Fraction(percent, 100) + 1
    text = f"{factor.numerator // factor.denominator}.{(percent % 100):02d}x"
    assert parse_budget(text).of(size) == share


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text):
    try:
        parsed = parse_budget(text)
        value = parsed.of(100)
    except BudgetError as error:
        assert str(error)
        return
    assert 0 < value < math.inf


@pytest.mark.parametrize(
    "text", ["0", "-5", "nan", "inf", "-inf", "1e400", "0%", "-5%", "1x", ".5x"]
)
def test_must_be_positive(text):
    with pytest.raises(BudgetError, match="positive"):
        parse_budget(text).of(100)


@pytest.mark.parametrize(
    "text", ["", "many", "5 apples", "%", "x", "1.5xx", "2Mparam5", "1,5", "0x10"]
)
def test_not_understood(text):
    with pytest.raises(BudgetError, match="not understood"):
        parse_budget(text)


def test_units_must_agree():
    with pytest.raises(InputError, match="in params, the unit asked for is flops"):
        parse_budget("2Mparams").in_unit("flops")
    assert parse_budget("2Mparams").in_unit("params") == "params"
    assert parse_budget("2Mparams").in_unit(None) == "params"
    assert parse_budget("2").in_unit(None) == "neurons"


def test_rounds_of_a_grower():
    assert budget_of("+25%", 0, 40) == 10
    assert budget_of("1.25x", 3, 40) == 10
    with pytest.raises(BudgetError, match="unit='params'"):
        budget_of("2Mparams", 0, 40)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("budget", "unit", "amount"),
    [
        ("+25%", "neurons", 3),
        ("1.5x", "neurons", 6),
        ("5neurons", "neurons", 5),
        ("60params", "params", 60),
    ],
)
def test_expand_takes_texts(budget, unit, amount):
    options = {"distributor": "uniform", "example_inputs": torch.zeros(2, 6)}
    plan = fxgrow.expand(net(), None, budget=budget, adjust_epochs=0, **options).plan
    assert (plan.unit, plan.budget) == (unit, amount)
    assert 0 < plan.spent <= amount
    number = fxgrow.expand(net(), None, budget=amount, unit=unit, adjust_epochs=0, **options).plan
    assert number == plan


def test_expand_refuses_two_units():
    with pytest.raises(InputError, match="leave one of them out"):
        fxgrow.expand(net(), None, budget="9params", unit="flops", distributor="uniform")


def test_shares_of_a_width_are_exact():
    wide = nn.Sequential(nn.Linear(3, 100), nn.ReLU(), nn.Linear(100, 2))
    assert fxgrow.widen(wide, torch.zeros(1, 3), "+29%").plan.additions == {"0": 29}


def test_additions_have_a_limit():
    with pytest.raises(InputError, match="more than the limit"):
        fxgrow.widen(net(), torch.zeros(1, 6), {"0": 10**12})
