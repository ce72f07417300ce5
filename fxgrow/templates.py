"""The texts of exported Python packages (see :mod:`fxgrow.package`)."""

from __future__ import annotations

import keyword
import re

__all__ = ["DISPATCH", "HELPERS", "INIT", "MODEL", "class_name"]

INIT = '''"""A network and its weights: ``load()`` returns it, trained."""

from .model import {name}, load

__all__ = ["{name}", "load"]
'''

MODEL = '''"""{title}"""

from pathlib import Path

{imports}
from safetensors.torch import load_file

FROZEN = {frozen}
"""Parameters that rested when this was written."""


class {name}(nn.Module):
    """The network without its weights: ``load()`` fills them in."""

    def __init__(self):
        super().__init__()
{construction}

{forwards}


def load(path=Path(__file__).with_name("weights.safetensors")):
    """Build the network and fill in the weights."""
    net = {name}()
    values = load_file(path)
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            tensor.copy_(values.pop(name))
    if values:
        raise ValueError(f"weights without a place: {{', '.join(values)}}")
    for name in FROZEN:
        net.get_parameter(name).requires_grad_(False)
    return net
{helpers}'''

DISPATCH = """
def forward(self, *args, **kwargs):
    chosen = self.forward_train if self.training else self.forward_eval
    return chosen(*args, **kwargs)
"""

HELPERS: dict[str, str] = {
    "add": '''

def add(root, path, value, persistent=True):
    """Put a layer, parameter, buffer or constant where the dotted path says."""
    *outer, name = path.split(".")
    for part in outer:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]
    if isinstance(value, nn.Module):
        root.add_module(name, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(name, value)
    elif isinstance(value, torch.Tensor):
        root.register_buffer(name, value, persistent)
    else:
        setattr(root, name, value)
''',
    "get": '''

def get(root, path):
    """Return what lies at a dotted path."""
    for part in path.split("."):
        root = getattr(root, part)
    return root
''',
    "guard": '''

def guard(value, expected):
    """Stop where a decision on sizes would fall otherwise than when this was written."""
    if type(expected)(value) != expected:
        raise RuntimeError("the inputs need another branch of the original code than this one")
''',
    "restored": '''

def restored(kind, attributes, parts):
    """Build a layer from its attributes, without calling its constructor."""
    layer = kind.__new__(kind)
    nn.Module.__init__(layer)
    vars(layer).update(attributes)
    for name, value in parts.items():
        if value is nn.Parameter:
            layer.register_parameter(name, None)
        elif isinstance(value, nn.Module):
            layer.add_module(name, value)
        elif isinstance(value, nn.Parameter):
            layer.register_parameter(name, value)
        else:
            layer.register_buffer(name, value)
    return layer
''',
}


def class_name(text: str) -> str:
    """Turn a file's stem into the name of a class.

    Examples
    --------
    >>> class_name("grown-net"), class_name("3d")
    ('GrownNet', 'Net3d')
    """
    words = [word for word in re.split(r"[^0-9A-Za-z]+", text) if word]
    name = "".join(word[:1].upper() + word[1:] for word in words) or "Net"
    name = name if name.isidentifier() else f"Net{name}"
    return f"{name}Net" if keyword.iskeyword(name) else name
