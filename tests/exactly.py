"""Growth of all that can grow, alone and together, as the engine's tests ask for it."""

from __future__ import annotations

from checks import errors, step, untrained

import fxgrow
from fxgrow.rewrite import rewrite

EXACT = 1e-10


def grows_exactly(model, example):
    """Grow every group alone, then all at once: the same function, and all that is new trains."""
    inspection = fxgrow.inspect(model, example)
    for group in inspection.groups:
        grown = rewrite(model, inspection, {group.name: step(group, 1)})
        assert max(errors(model, grown.module, example)) <= EXACT, group.name
    growth = fxgrow.widen(model, example, {g.name: step(g) for g in inspection.groups})
    assert max(errors(model, growth.module, example)) <= EXACT
    assert untrained(growth.module, growth.groups, example) == []
