"""Why groups are frozen, in one sentence for each code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from .ir import Reason

if TYPE_CHECKING:
    from .events import Where

__all__ = ["MESSAGES", "reason_for"]

MESSAGES = {
    "input": "these columns read the model's inputs, which are the user's",
    "output": "the units reach the model's outputs, which are the user's",
    "kernel": "this axis is a kernel or a spatial axis, not a width",
    "inner_axis": "the axis is shared by all heads or convolution groups, which grow instead",
    "unlabelled": (
        "the units are aligned with positions that can't grow "
        "(an input, a constant, or token positions)"
    ),
    "product": "the units are summed away against something that can't be set to zero",
    "vocabulary": "the axis is indexed by the user's data",
    "layer_norm": "layer or RMS normalisation over the channels mixes all units",
    "group_norm": "group normalisation with one group mixes all units",
    "max": "where a maximum over the channels is decides about something: copies would change it",
    "min": "where a minimum over the channels is decides about something: copies would change it",
    "local": "a convolution along the channels reads neighbours, and new ones would not be zero",
    "sum": "a sum over the channels mixes all units",
    "norm": "a norm over the channels mixes all units",
    "p_norm": "a norm over the channels, of an order other than 1, 2 or infinity, mixes all units",
    "batch_norm": "batch normalisation over these positions, not channels, mixes all units",
    "_softmax": "softmax over the channels mixes all units",
    "spatial": "pooling over these positions mixes the units",
    "unknown_op": "an operation without a rule touches the units",
    "opaque": "the units pass through Python code that can't be traced, with sizes inside",
    "hidden_size": "a size in the model's own Python code can't follow these units",
    "data_dependent": "the units are indexed by computed data",
    "in_place_view": "an in-place write into a view touches the units",
    "too_large": "the tensor is too large to be labelled position by position",
    "reshape": "a reshape interleaves these units with others: none can be inserted alone",
    "seam": (
        "one unit has entries on both sides of the seam of a concatenation or split: behind it "
        "no other fits"
    ),
    "unread": "nothing reads these units",
    "weight_norm": "the weights are normalised over these units: new ones would rescale the old",
    "dot": "a dot product, as in spectral normalisation, mixes all units",
    "constant": "a buffer, which never trains, computes these units",
    "requires_grad": (
        "nothing that reads these units requires gradients, so new ones would never have an effect"
    ),
    "excluded": "left out by include/exclude",
    "inner_scale": "a kernel in Python code that can't be traced scales by the size of these axes",
    "inner_table": "a table of the old size (such as rotary frequencies) lies along the inner axis",
    "inner_mixed": "operations mix all positions of these axes: they are one unit, and stay it",
}


def reason_for(code: str, where: Where | None) -> Reason:
    """Word a reason, with the place."""
    message = MESSAGES.get(code, f"{code} over the channels mixes all units")
    if where is None or not isinstance(where.site, fx.Node):
        return Reason(code, message)
    return Reason(
        code, f"{message} ({where.op})", where.site.name, where.site.meta.get("source", "")
    )
