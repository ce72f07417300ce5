"""What people do with a network, as checks: each says what it measured, or fails.

A check takes a :class:`Subject` and returns a note. The same checks are made on the original
and on what growth made of it, so that what fails on both is known not to come from growth.
"""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from checks import difference, no_dropout, run, tensors
from torch import nn

import fxgrow
from fxgrow.export import export

EXACT, CLOSE, COARSE = 1e-5, 2e-4, 0.1


class Failed(Exception):
    """A check's result is wrong."""


class NotApplicable(Exception):
    """There is nothing to check."""


@dataclass
class Subject:
    """A network with its inputs; ``original`` and ``growth`` where it has been grown."""

    model: nn.Module
    example: Any
    origin: str = ""
    original: nn.Module | None = None
    growth: Any = None
    again: Callable[[], nn.Module] | None = None  # builds the same shapes with other values
    breaks: int = 0  # graph breaks that torch.compile may have
    notes: dict[str, Any] = field(default_factory=dict)


def need(condition, message):
    if not condition:
        raise Failed(message)


def evaluated(model, example, training=False):
    """Float outputs, no gradients, the same random state each time."""
    model.train(training)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [t for t in tensors(run(model, example)) if t.is_floating_point()]


def same(model, other, example, tolerance=EXACT):
    """Fail unless two models have the same outputs in eval mode; return the difference."""
    gap = difference(evaluated(model, example), evaluated(other, example))
    need(gap <= tolerance, f"outputs differ by {gap:.1e}, relative")
    return gap


def objective(model, example):
    """Squared distance to fixed random targets; a detector's own losses."""
    out = run(model, example)
    if isinstance(out, dict) and out and all(t.ndim == 0 for t in tensors(out)):
        return sum(tensors(out))
    generator = torch.Generator().manual_seed(1)
    losses = []
    for t in tensors(out):
        if t.is_floating_point() and t.requires_grad:
            target = torch.randn(t.shape, generator=generator).to(t.dtype)
            losses.append((t - target).square().mean())
    return sum(losses)


def finite(model):
    named = [*model.named_parameters(), *model.named_buffers()]
    wrong = [n for n, t in named if t.is_floating_point() and not bool(t.isfinite().all())]
    need(not wrong, f"not finite: {', '.join(wrong[:3])}")


def copied(subject, training=False):
    return copy.deepcopy(subject.model).train(training)


# ----------------------------------------------------------------------- checks


def trains(subject, steps=8):
    """Adam and SGD: the loss of one batch falls, nothing becomes infinite."""
    notes = []
    for make, lr in ((torch.optim.Adam, 1e-3), (torch.optim.SGD, 1e-3)):
        model = no_dropout(copied(subject, training=True))
        optimizer = make([p for p in model.parameters() if p.requires_grad], lr=lr)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = objective(model, subject.example)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        finite(model)
        shown = f"{make.__name__} {losses[0]:.3g} → {losses[-1]:.3g}"
        need(losses[-1] < losses[0], f"the loss does not fall: {shown}")
        notes.append(shown)
    return "; ".join(notes)


def compiled(subject, backend="aot_eager"):
    """``torch.compile``: outputs, gradients, and no more graph breaks than the original."""
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    dynamo.reset()
    counters.clear()
    model = no_dropout(copied(subject))
    fast = torch.compile(model, backend=backend)
    gap = difference(evaluated(model, subject.example), evaluated(fast, subject.example))
    breaks = sum(counters["graph_break"].values())
    graphs = counters["stats"]["unique_graphs"]
    need(gap <= CLOSE, f"outputs differ by {gap:.1e}, relative")
    need(graphs > 0, "nothing was compiled")
    gradients = []
    for each in (model, fast):
        torch.manual_seed(0)
        model.zero_grad()
        objective(each.train(), subject.example).backward()
        # One vector: gradients that are zero but for rounding (of keys' biases) tell nothing alone.
        found = [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
        gradients.append([torch.cat(found)])
    gap = difference(gradients[0], gradients[1])
    need(gap <= 2e-2, f"gradients differ by {gap:.1e}, relative")
    dynamo.reset()
    subject.notes["breaks"] = breaks
    need(breaks <= subject.breaks, f"{breaks} graph breaks, the original has {subject.breaks}")
    return f"{graphs} graphs, {breaks} breaks"


def inductor(subject):
    """``torch.compile`` with its default backend."""
    return compiled(subject, backend="inductor")


def autocast(subject):
    """bf16 autocast: a finite loss and gradients, outputs near those of float32."""
    model = no_dropout(copied(subject))
    plain = evaluated(model, subject.example)
    with torch.autocast("cpu", torch.bfloat16):
        low = [t.float() for t in evaluated(model, subject.example)]
    gap = difference(plain, low)
    need(gap <= COARSE, f"outputs differ by {gap:.1e} from those in float32")
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(model.train(), subject.example)
    loss.backward()
    need(bool(loss.isfinite()), "the loss is not finite")
    for name, p in model.named_parameters():
        need(p.grad is None or bool(p.grad.isfinite().all()), f"gradient of {name} is not finite")
    return f"outputs within {gap:.0e}"


def images(value):
    """Kernels of two dimensions: what channels_last is about."""
    return [
        (name, p) for name, p in value.named_parameters() if p.ndim == 4 and p.shape[2:] != (1, 1)
    ]


def in_channels_last(model):
    return all(p.is_contiguous(memory_format=torch.channels_last) for _, p in images(model))


def channels_last(subject):
    """``.to(memory_format=channels_last)`` and growth of a network that has it."""
    if not images(subject.model):
        raise NotApplicable("no convolution over images")
    model = copied(subject).to(memory_format=torch.channels_last)
    need(in_channels_last(model), "weights are not channels_last")
    gap = same(subject.model, model, subject.example, CLOSE)
    if subject.growth is not None:
        base = copy.deepcopy(subject.original).to(memory_format=torch.channels_last)
        grown = fxgrow.widen(
            base, subject.example, subject.growth.plan, emit=subject.growth.report["emit"]
        ).module
        lost = [
            name
            for name, p in images(grown)
            if not p.is_contiguous(memory_format=torch.channels_last)
        ]
        need(not lost, f"growth makes these weights contiguous: {', '.join(lost[:3])}")
    return f"outputs within {gap:.0e}"


def deepcopied(subject):
    """``copy.deepcopy``: the same outputs, no memory in common, the same ties."""
    twin = copy.deepcopy(subject.model)
    gap = same(subject.model, twin, subject.example)

    def places(model):
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
        return {name: t.untyped_storage().data_ptr() for name, t in named if t.numel()}

    old, new = places(subject.model), places(twin)
    need(old.keys() == new.keys(), "names differ")
    need(not set(old.values()) & set(new.values()), "memory is shared")
    need(len(set(old.values())) == len(set(new.values())), "ties are lost")
    return f"outputs within {gap:.0e}"


def state_dict(subject):
    """Into a copy and into the same shapes with other values, strictly, and through a file."""
    model = subject.model
    state = model.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    need(list(read) == list(state), "keys differ after torch.load")
    twins = [copied(subject)]
    with torch.no_grad():
        for p in twins[0].parameters():
            p.add_(1)
    if subject.again is not None:
        twins.append(subject.again())
    for twin in twins:
        twin.load_state_dict(read, strict=True)
        same(model, twin, subject.example)
    if subject.original is not None and hasattr(subject.original, "state_dict"):
        extra = set(state) ^ set(subject.original.state_dict())
        need(not extra, f"keys that the original has not, or only it: {sorted(extra)[:3]}")
    return f"{len(state)} tensors"


def saved(subject):
    """``fxgrow.save`` and ``fxgrow.load`` onto the original."""
    if subject.growth is None:
        raise NotApplicable("not grown")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grown.safetensors"
        subject.growth.save(path)
        again = fxgrow.load(path, base=copy.deepcopy(subject.original)).module
    need(type(again).__name__ == type(subject.model).__name__, f"it is a {type(again).__name__}")
    return f"outputs within {same(subject.model, again, subject.example):.0e}"


def pickled(subject):
    """``torch.save`` of the module itself."""
    file = io.BytesIO()
    torch.save(subject.model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    need(type(again).__name__ == type(subject.model).__name__, f"it is a {type(again).__name__}")
    pickle.loads(pickle.dumps(subject.model))
    return f"outputs within {same(subject.model, again, subject.example):.0e}"


def exported(subject):
    """``torch.export`` (not strict): outputs of the program."""
    example = subject.example
    args, kwargs = ((), example) if isinstance(example, dict) else (example, {})
    args = args if isinstance(args, tuple) else (args,)
    model = copied(subject)
    program = torch.export.export(model, args, dict(kwargs), strict=False)
    again = program.module()
    before = evaluated(model, example)
    with torch.no_grad():
        after = [t for t in tensors(run(again, example)) if t.is_floating_point()]
    gap = difference(before, after)
    need(gap <= CLOSE, f"outputs differ by {gap:.1e}, relative")
    return f"outputs within {gap:.0e}"


def onnx(subject):
    """``fxgrow.export`` as ONNX, which is run in onnxruntime."""
    with tempfile.TemporaryDirectory() as folder:
        made = export(subject.model, subject.example, Path(folder) / "net.onnx", tolerance=1e-3)
    worst = max(check.relative for check in made.checks)
    batch = "any" if made.dynamic_batch else "one"
    return f"outputs within {worst:.0e}, {batch} batch size"


# ------------------------------------------------------------------------ truth


def _sizes(layer):
    """What layers of torch.nn say of their tensors: (attribute, said, true)."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor):
        weight = None
    told: list[tuple[str, Any, Any]] = []
    if isinstance(layer, nn.Linear):
        told = [("out_features", 0), ("in_features", 1)]
    elif isinstance(layer, nn.modules.conv._ConvNd):
        rows, columns = (1, 0) if layer.transposed else (0, 1)
        outs, ins = weight.shape[rows], weight.shape[columns]
        outs, ins = (outs * layer.groups, ins) if layer.transposed else (outs, ins * layer.groups)
        return [("out_channels", layer.out_channels, outs), ("in_channels", layer.in_channels, ins)]
    elif isinstance(layer, nn.Embedding):
        told = [("num_embeddings", 0), ("embedding_dim", 1)]
    elif isinstance(layer, nn.LayerNorm) and weight is not None:
        return [("normalized_shape", tuple(layer.normalized_shape), tuple(weight.shape))]
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        tensor = weight if weight is not None else layer.running_mean
        return [] if tensor is None else [("num_features", layer.num_features, len(tensor))]
    elif isinstance(layer, nn.GroupNorm) and weight is not None:
        whole = layer.num_channels % layer.num_groups == 0
        return [("num_channels", layer.num_channels, len(weight)), ("num_groups", whole, True)]
    return [(name, getattr(layer, name), weight.shape[dim]) for name, dim in told]


def layers_untrue(model):
    """Layers whose attributes are not the sizes of their tensors."""
    return [
        f"{name}.{attribute} is {said}, not {true}"
        for name, layer in model.named_modules()
        for attribute, said, true in _sizes(layer)
        if said != true
    ]


# Sizes of other things, which happen to be as large as a width now and then.
NO_WIDTHS = {"training", "img_size", "image_size", "base_width", "reduction", "window_size"}
NO_WIDTHS |= {
    "key_value_proj_dim",
    "num_patches",
    "grid_size",
    "partition_ratio",
    "head_dim",
    "downsample_factor",
}


def _numbers(owner):
    for key, value in vars(owner).items():
        if key.startswith("_") or key in NO_WIDTHS:
            continue
        if type(value) is int:
            yield key, value
        elif type(value) in {list, tuple} and value and all(type(v) is int for v in value):
            yield from ((f"{key}[{i}]", v) for i, v in enumerate(value))
        elif type(value) is list and value and all(isinstance(v, dict) for v in value):
            for i, entry in enumerate(value):
                yield from (
                    (f"{key}[{i}].{k}", v)
                    for k, v in entry.items()
                    if type(v) is int and k not in NO_WIDTHS
                )


def attributes_stale(old, new):
    """Numbers of modules that were a width below them before growth, and are none after.

    A number is judged by the tensors in its own module: where all axes of that size have
    become another size, it can't be true any more.
    """
    layers = dict(new.named_modules())
    stale = []
    for name, module in old.named_modules():
        twin = layers.get(name)
        if twin is None or type(module).__module__.startswith("torch.nn"):
            continue
        after = dict(_numbers(twin))
        shapes = {key: p.shape for key, p in twin.named_parameters()}
        axes = [
            (old_size, shapes[key][d])
            for key, p in module.named_parameters()
            if key in shapes
            for d, old_size in enumerate(p.shape[:2])
        ]
        for key, value in _numbers(module):
            found = {new_size for old_size, new_size in axes if old_size == value}
            if value > 3 and found and after.get(key) not in found:
                stale.append(f"{name}.{key} is {after.get(key)}; once {value}, now {sorted(found)}")
    return stale


def truthful(subject):
    """Attributes of layers and of the user's modules say the sizes that there are."""
    wrong = layers_untrue(subject.model)
    if subject.original is not None and subject.growth.report["emit"] == "module":
        wrong += attributes_stale(subject.original, subject.model)
    need(not wrong, f"{len(wrong)}: " + "; ".join(wrong[:6]))
    return f"{sum(1 for _ in subject.model.modules())} modules"


# ---------------------------------------------------------------------- methods


def _timm(subject):
    model, x = copied(subject), subject.example
    done = []
    with torch.no_grad():
        features = model.forward_features(x)
        gap = difference([model(x)], [model.forward_head(features)])
        need(gap <= EXACT, f"forward_head(forward_features(x)) differs by {gap:.1e}")
        width = model.forward_head(features, pre_logits=True).shape[-1]
        need(
            model.head_hidden_size == width,
            f"head_hidden_size is {model.head_hidden_size}, not {width}",
        )
        need(
            model.num_features in features.shape[1:],
            f"num_features is {model.num_features}, features are {tuple(features.shape)}",
        )
        done += ["forward_features", "forward_head", "num_features"]
        head = model.get_classifier()
        first = head[0] if isinstance(head, (tuple, list)) else head
        need(first.out_features == model(x).shape[-1], "get_classifier: another layer")
        model.reset_classifier(7)
        need(model(x).shape == (len(x), 7), "reset_classifier: other outputs")
        done += ["get_classifier", "reset_classifier"]
        if hasattr(model, "forward_intermediates"):
            kept = copied(subject)
            maps = kept.forward_intermediates(x, intermediates_only=True)
            told = [entry["num_chs"] for entry in kept.feature_info]
            seen = [m.shape[1] for m in maps]
            need(seen[-len(told) :] == told[-len(seen) :], f"feature_info {told}, maps {seen}")
            done += ["forward_intermediates", "feature_info"]
    return ", ".join(done)


def _transformers(subject):
    model, inputs = copied(subject), subject.example
    done = []
    if hasattr(model, "generate") and getattr(model, "can_generate", lambda: False)():
        key = "input_features" if "input_features" in inputs else "input_ids"
        options = {"max_new_tokens": 4, "do_sample": False}
        told = model.generate(inputs[key], **options)
        if subject.original is not None:
            before = copy.deepcopy(subject.original).eval().generate(inputs[key], **options)
            need(torch.equal(before, told), "generate: other tokens")
        done.append("generate")
    layer = model.get_input_embeddings()
    need(isinstance(layer, nn.Module), "get_input_embeddings: no layer")
    config = (subject.growth.report["config"] or {}) if subject.growth is not None else {}
    if config.get("obstacle"):
        done.append(f"save_pretrained: {config['obstacle']}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            again = type(model).from_pretrained(folder)
        same(model, again, inputs)
        done.append("save_pretrained, from_pretrained")
    if isinstance(layer, nn.Embedding) and "input_ids" in inputs:
        model.resize_token_embeddings(layer.num_embeddings + 6)
        run(model, inputs)
        done.append("resize_token_embeddings")
    return ", ".join(done)


def _torchvision(subject):
    model = copied(subject)
    done = []
    names = [name for name, m in model.named_modules() if type(m) is nn.Linear]
    if names and isinstance(subject.example, torch.Tensor):  # a new head for another task
        owner, _, last = names[-1].rpartition(".")
        head = getattr(model.get_submodule(owner), last)
        setattr(model.get_submodule(owner), last, nn.Linear(head.in_features, 7))
        need(run(model, subject.example).shape[-1] == 7, "another head: other outputs")
        done.append("another head")
    if hasattr(model, "fuse_model"):
        fused = copied(subject)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fused.fuse_model(is_qat=False)
        done.append(f"fuse_model: {same(subject.model, fused, subject.example, CLOSE):.0e}")
    if hasattr(model, "backbone"):
        need(isinstance(model.backbone, nn.Module), "no backbone")
        done.append("backbone")
    if not done:
        raise NotApplicable("no methods of its own")
    return ", ".join(done)


METHODS = {"timm": _timm, "transformers": _transformers, "torchvision": _torchvision}


def methods(subject):
    """What the library's own classes can do."""
    if subject.growth is not None and subject.growth.report["emit"] == "graph":
        raise NotApplicable("a graph has no methods of the class")
    return METHODS[subject.origin](subject)


CHECKS = {
    "trains": trains,
    "compile": compiled,
    "inductor": inductor,
    "bf16": autocast,
    "channels_last": channels_last,
    "deepcopy": deepcopied,
    "state_dict": state_dict,
    "save": saved,
    "pickle": pickled,
    "export": exported,
    "onnx": onnx,
    "truth": truthful,
    "methods": methods,
}


def attempt(check, subject):
    """One check: ``{"state": "works" | "fails" | "none", "note"}``."""
    training = subject.model.training
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {"state": "works", "note": CHECKS[check](subject)}
    except NotApplicable as reason:
        return {"state": "none", "note": str(reason)}
    except Exception as error:  # noqa: BLE001  # whatever users would see
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        note = lines[0][:300] if lines else ""
        kind = "" if isinstance(error, Failed) else f"{type(error).__name__}: "
        return {"state": "fails", "note": kind + note}
    finally:
        subject.model.train(training)


def everything(inspection, units=8):
    """Additions for every group: the smallest step that is ``units`` or more."""
    return {g.name: -(-units // g.multiple_of) * g.multiple_of for g in inspection.groups}
