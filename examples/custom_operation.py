"""A custom operation gets a rule, and the network around it can grow.

``python examples/custom_operation.py`` needs no data and no network.
"""

from __future__ import annotations

import torch
from torch import library, nn

import fxgrow


@library.custom_op("fxgrow_example::gated", mutates_args=())
def gated(value: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Multiply by a sigmoid, channel by channel; stands for your kernel."""
    return value * torch.sigmoid(gate)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor) -> tuple:
    value, gate = ctx.saved_tensors
    open_ = torch.sigmoid(gate)
    return grad * open_, grad * value * open_ * (1 - open_)


gated.register_autograd(_gradients, setup_context=_save)


class Net(nn.Module):
    """Two linear layers meet in the operation."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(4, width), nn.Linear(4, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute scores of ``x``, shape ``(batch, 4)``."""
        return self.head(gated(self.value(x), self.gate(x)))


@fxgrow.rule(gated)
def meets(state: fxgrow.Propagation, call: fxgrow.Call) -> list[fxgrow.Plane]:
    """Channel j of the value meets channel j of the gate: they grow together."""
    operands = [(state.planes(tensor), tensor.shape) for tensor in call.args]
    return state.book.meet(operands, call.out.ndim, state.where(call.name), product=True)


def main() -> None:
    """Show the network frozen, then growing."""
    torch.manual_seed(0)
    model, x = Net(), torch.randn(16, 4)
    unknown = fxgrow.inspect(model, x)
    print("without a rule:", [group.name for group in unknown.groups])
    for entry in unknown.unsupported:
        print(f"  no rule for {entry.op}, {entry.count} time(s), first at {entry.source}")
    known = fxgrow.inspect(model, x, rules=[meets])
    print("with the rule: ", [(group.name, group.width, group.layers) for group in known.groups])
    growth = fxgrow.widen(model, x, {"value": 4}, rules=[meets])
    print("grown:         ", growth.module.get_submodule("value"))
    print("largest change:", f"{growth.verification.eval_error:.1e} of the largest output")


if __name__ == "__main__":
    main()
