"""The permutation oracle: is a group what it says? Independent of the rewriter.

Permuting a group's units in all its slots must leave the outputs unchanged (else a slot
is missing); permuting in all slots but one must change them (else that slot is wrong).
"""

from __future__ import annotations

import random

import torch
from checks import difference, outputs, run
from checks import tensors as tensors_of

SAME = 1e-10
CHANGED = 1e-6


def permute(tensors, slots, *, inverse=False):
    """Move every unit of ``slots`` one place on (or back), in place."""
    for slot in slots:
        tensor = tensors[slot.tensor]
        to = torch.from_numpy(slot.positions)
        start = to.roll(-1 if inverse else 1, 0)
        with torch.no_grad():
            tensor.index_copy_(
                slot.dim, to.reshape(-1), tensor.index_select(slot.dim, start.reshape(-1))
            )


def look(model, example, *, training):
    """Outputs; without a copy in eval mode, which changes nothing."""
    if training or model.training:
        return outputs(model, example, training=training)
    with torch.no_grad():
        return [t for t in tensors_of(run(model, example)) if t.is_floating_point()]


def gap(model, tensors, slots, example, reference, *, training=False):
    """Change of the outputs when the units of ``slots`` are permuted."""
    permute(tensors, slots)
    try:
        return difference(reference, look(model, example, training=training))
    finally:
        permute(tensors, slots, inverse=True)


def complaints(model, groups, example, *, omit=2, redundant=(), training=False):
    """Say what is wrong with ``groups``; ``redundant``: tensors that can't matter."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    model.eval()
    reference = look(model, example, training=training)
    rng = random.Random(0)
    found = []
    for group in groups:
        if group.width < 2:
            continue
        slots = group.slots
        change = gap(model, tensors, slots, example, reference, training=training)
        if change > SAME:
            found.append(f"{group.name}: permuting its units changes the outputs by {change:.1e}")
        for slot in rng.sample(slots, min(omit, len(slots))) if len(slots) > 1 else []:
            if slot.tensor.endswith(redundant) and redundant:
                continue
            rest = [s for s in slots if s is not slot]
            change = gap(model, tensors, rest, example, reference)
            if change < CHANGED:
                found.append(
                    f"{group.name}: {slot.tensor}[{slot.dim}] left out changes the outputs by "
                    f"{change:.1e} only"
                )
    return found
