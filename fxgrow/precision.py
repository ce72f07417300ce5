"""Parameters of half precision train through copies of single precision.

Steps of 1e-3 on a bfloat16 weight of 0.3 are rounded away, and optimizers of float16
divide by zero (eps underflows). The copies are stepped, then rounded into the parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LOW", "Masters", "master"]

LOW = frozenset({torch.float16, torch.bfloat16})
"""Types whose sums and steps get lost."""


def master(param: torch.Tensor) -> torch.Tensor:
    """Return a float32 copy of a parameter of half precision, else the parameter itself."""
    return param.detach().float() if param.dtype in LOW else param


class Masters:
    """What an optimizer steps in place of ``params``.

    Attributes
    ----------
    tensors : list of torch.Tensor
        The parameters, float32 copies in the place of those of half precision.
    """

    def __init__(self, params: Sequence[torch.Tensor]) -> None:
        self.tensors = [master(param) for param in params]
        pairs = zip(params, self.tensors, strict=True)
        self._pairs = [(param, own) for param, own in pairs if own is not param]

    def pull(self) -> None:
        """Hand the parameters' gradients to their copies."""
        for param, own in self._pairs:
            own.grad = None if param.grad is None else param.grad.float()

    @torch.no_grad()
    def push(self) -> None:
        """Round the copies into the parameters."""
        for param, own in self._pairs:
            param.copy_(own)
