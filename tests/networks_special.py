"""Small models with something special about them: name → (factory, example)."""

from __future__ import annotations

import warnings

import torch
from networks import IMAGE, VECTOR
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

SEQUENCE = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(2))


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 3))


def convnet():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def each(change, make=mlp, layers=(0, 2)):
    """A factory of networks in which ``change`` was made to some layers."""

    def factory():
        model = make()
        for i in layers:
            with warnings.catch_warnings():  # the older weight norm is deprecated, and in use
                warnings.simplefilter("ignore", FutureWarning)
                changed = change(model[i])
            model[i] = model[i] if changed is None else changed
        return model

    return factory


def old_weight_norm(**options):
    return lambda layer: nn.utils.weight_norm(layer, **options)


def old_weight_norm_of(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def eager(target):
    return torch.compile(target, backend="eager")


# -- compiled --------------------------------------------------------------------------


@torch.compile(backend="eager")
def compiled_product(x, w):
    return torch.tanh(x @ w.t())


@torch._dynamo.disable
def never_compiled(x):
    return x.relu() * 2


class CompiledParts(nn.Module):
    """Compiled and uncompilable functions in a plain forward."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(7, 6))
        self.a, self.b = nn.Linear(7, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(never_compiled(self.a(compiled_product(x, self.w))))


class CompiledForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    @torch.compile(backend="eager")
    def forward(self, x):
        return self.b(self.a(x).relu())


def compiled_in_place():
    model = convnet()
    model.compile(backend="eager")
    return model


# -- checkpointed ----------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.body = nn.Sequential(nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 8))
        self.reentrant = reentrant

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + checkpoint(self.body, x, use_reentrant=self.reentrant))


class CheckpointedInTraining(Checkpointed):
    """A closure over modules, checkpointed where gradients will be needed."""

    def forward(self, x):
        x = self.stem(x)

        def block(y, z):
            return self.body(y).tanh() * z.size(0), y + z

        if self.training and x.requires_grad:
            a, b = checkpoint(block, x, x.sin(), use_reentrant=self.reentrant)
        else:
            a, b = block(x, x.sin())
        return self.head(a + b)


class CheckpointedSequence(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.body, self.reentrant = nn.Linear(6, 6), mlp(), reentrant

    def forward(self, x):
        return checkpoint_sequential(self.body, 2, self.first(x), use_reentrant=self.reentrant)


def frugal_densenet():
    from torchvision.models.densenet import DenseNet

    return DenseNet(4, (2,), 8, bn_size=2, num_classes=3, memory_efficient=True)


# -- parametrised ----------------------------------------------------------------------


class Transformed(nn.Module):
    """A parametrisation given by a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Scaled(nn.Module):
    """Rows times a learnt scale."""

    def __init__(self, rows):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(rows, 1) + 0.5)

    def forward(self, x):
        return x * self.scale


class Masked(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.register_buffer("mask", (torch.rand(shape) > 0.3).float())

    def forward(self, x):
        return x * self.mask


def parametrised(make):
    def change(layer):
        parametrize.register_parametrization(layer, "weight", make(layer), unsafe=True)

    return change


def scaled_weight_norm(layer):
    parametrizations.weight_norm(layer)
    parametrised(lambda own: Scaled(own.out_features))(layer)


class Vocoder(nn.Module):
    """Convolutions, transposed and grouped, as in HiFi-GAN: norms over dim 0 in all."""

    def __init__(self, norm):
        super().__init__()
        self.a, self.b = norm(nn.Conv1d(3, 6, 3)), norm(nn.ConvTranspose1d(6, 8, 4, 2))
        self.c, self.d = norm(nn.Conv1d(8, 8, 3, groups=4)), norm(nn.Conv1d(8, 5, 1))
        self.e, self.head = norm(nn.Conv1d(5, 5, 3, groups=5)), nn.Conv1d(5, 3, 1)

    def forward(self, x):
        for layer in (self.a, self.b, self.c, self.d, self.e):
            x = nn.functional.leaky_relu(layer(x))
        return self.head(x).mean(2)


class NormedStream(nn.Module):
    """A residual stream under layer norms, read by normalised weights."""

    def __init__(self, norm):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), norm(nn.Linear(8, 9)), nn.Linear(9, 8)
        self.n, self.m, self.d = nn.LayerNorm(8), nn.LayerNorm(8), norm(nn.Linear(8, 3))

    def forward(self, x):
        x = self.a(x)
        return self.d(self.m(x + self.c(self.b(self.n(x)).relu())))


# -- pruned ----------------------------------------------------------------------------


def prune_twice(layer):
    prune.random_unstructured(layer, "weight", 0.2)
    prune.ln_structured(layer, "weight", 0.3, n=2, dim=0)
    prune.random_unstructured(layer, "bias", 0.3)


class OwnWeight(nn.Module):
    """A weight of its own, pruned by a hook."""

    def __init__(self):
        super().__init__()
        self.w, self.c = nn.Parameter(torch.randn(8, 6)), nn.Linear(8, 3)
        prune.l1_unstructured(self, "w", 0.3)

    def forward(self, x):
        return self.c((x @ self.w.t()).tanh())


# -- shared, frozen, buffers -----------------------------------------------------------


class Shared(nn.Module):
    """One block called twice under two names, and tied weights."""

    def __init__(self):
        super().__init__()
        self.a, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.b = nn.Sequential(nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 8))
        self.again = self.b
        self.d.weight = self.c.weight

    def forward(self, x):
        x = self.a(x).relu()
        return self.c(x + self.b(x)) + self.d((x + self.again(x)).tanh())


def resting(*names, make=mlp):
    def factory():
        model = make()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(names))
        return model

    return factory


class Positions(nn.Module):
    """Integer and boolean buffers, cut to the input's length."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Embedding(11, 6), nn.Embedding(8, 6)
        self.register_buffer("position_ids", torch.arange(8)[None])
        self.register_buffer("keep", torch.ones(3, dtype=torch.bool))
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.embed(tokens) + self.place(self.position_ids[:, : tokens.shape[1]])
        return self.b(self.a(x).relu()) * self.keep


class ScaledUnits(nn.Module):
    """A float buffer with an entry per unit, a permutation that is not read."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.rand(8) + 0.5)
        self.register_buffer("order", torch.randperm(8))
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b((self.a(x) * self.scale).relu())


class Permuted(ScaledUnits):
    def forward(self, x):
        return self.b(self.a(x).relu()[:, self.order])


def cumulative_norms():
    model = convnet()
    model[1].momentum = model[4].momentum = None
    return model


def observed():
    from torch.ao.quantization import MinMaxObserver

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of another package
        return nn.Sequential(nn.Linear(6, 8), MinMaxObserver(), nn.ReLU(), nn.Linear(8, 3))


def with_root_hooks():
    model = mlp()
    model.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model.register_forward_hook(lambda module, args, out: out * 0.5)
    return model


def with_leaf_hooks():
    model = mlp()
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model[2].register_forward_hook(lambda module, args, out: out * 0.5)
    return model


SN, WN = parametrizations.spectral_norm, parametrizations.weight_norm
# Everything in these grows but what reads the input and what makes the output.
HANDLED = {
    "compiled": (lambda: eager(convnet()), IMAGE),
    "compiled_in_place": (compiled_in_place, IMAGE),
    "compiled_child": (lambda: nn.Sequential(nn.Linear(6, 6), eager(mlp())), VECTOR),
    "compiled_functions": (CompiledParts, VECTOR),
    "compiled_forward": (lambda: nn.Sequential(nn.Linear(6, 6), CompiledForward()), VECTOR),
    "checkpoint_reentrant": (lambda: Checkpointed(True), VECTOR),
    "checkpoint": (lambda: Checkpointed(False), VECTOR),
    "checkpoint_in_training": (lambda: CheckpointedInTraining(False), VECTOR),
    "checkpoint_sequence": (lambda: CheckpointedSequence(False), VECTOR),
    "checkpoint_sequence_reentrant": (lambda: CheckpointedSequence(True), VECTOR),
    "checkpoint_densenet": (frugal_densenet, torch.randn(2, 3, 32, 32)),
    "weight_norm": (each(WN, layers=(0, 2, 4)), VECTOR),
    "weight_norm_conv": (each(WN, convnet, (0, 3, 8)), IMAGE),
    "weight_norm_old": (each(old_weight_norm(), layers=(0, 2, 4)), VECTOR),
    "weight_norm_old_conv": (each(old_weight_norm(), convnet, (0, 3, 8)), IMAGE),
    "weight_norm_scaled": (each(scaled_weight_norm), VECTOR),
    "parametrised_scale": (each(parametrised(lambda own: Scaled(own.out_features))), VECTOR),
    "parametrised_centred": (
        each(parametrised(lambda _: Transformed(lambda w: w - w.mean(1, keepdim=True)))),
        VECTOR,
    ),
    "parametrised_mask": (
        each(parametrised(lambda own: Masked(*own.weight.shape)), layers=(0, 2, 4)),
        VECTOR,
    ),
    "pruned": (each(lambda own: prune.l1_unstructured(own, "weight", 0.3)), VECTOR),
    "pruned_rows": (each(lambda own: prune.ln_structured(own, "weight", 0.3, 2, 0)), VECTOR),
    "pruned_columns": (each(lambda own: prune.ln_structured(own, "weight", 0.3, 2, 1)), VECTOR),
    "pruned_twice": (each(prune_twice, layers=(0, 2, 4)), VECTOR),
    "pruned_conv": (
        each(lambda own: prune.l1_unstructured(own, "weight", 0.3), convnet, (0, 3)),
        IMAGE,
    ),
    "pruned_own_weight": (lambda: nn.Sequential(OwnWeight()), VECTOR),
    "shared": (Shared, VECTOR),
    "resting_producer": (resting("0."), VECTOR),
    "resting_biases": (resting("0.bias", "2.bias"), VECTOR),
    "buffer_per_unit": (ScaledUnits, VECTOR),
    "cumulative_norms": (cumulative_norms, IMAGE),
    "root_hooks": (with_root_hooks, VECTOR),
    "leaf_hooks": (with_leaf_hooks, VECTOR),
}
# name: factory, example, what grows (layers that write it), frozen layers with their reasons
PARTLY = {
    "vocoder": (lambda: Vocoder(WN), SEQUENCE, {"a", "d", "e"}, {"b": "weight_norm"}),
    "vocoder_old": (
        lambda: Vocoder(old_weight_norm_of),
        SEQUENCE,
        {"a", "d", "e"},
        {"b": "weight_norm"},
    ),
    "weight_norm_by_column": (
        each(lambda own: WN(own, dim=1)),
        VECTOR,
        set(),
        {"0": "weight_norm", "2": "weight_norm"},
    ),
    "weight_norm_old_by_column": (
        each(old_weight_norm(dim=1)),
        VECTOR,
        set(),
        {"0": "weight_norm", "2": "weight_norm"},
    ),
    "weight_norm_whole": (each(lambda own: WN(own, dim=None)), VECTOR, {"2"}, {"0": "norm"}),
    "weight_norm_old_whole": (each(old_weight_norm(dim=None)), VECTOR, {"2"}, {"0": "norm"}),
    "weight_norm_of_a_stream": (lambda: NormedStream(WN), VECTOR, {"b"}, {"a": "weight_norm"}),
    "spectral_norm": (each(SN), VECTOR, set(), {"0": "dot", "2": "dot"}),
    "spectral_norm_columns": (each(SN, layers=(2,)), VECTOR, {"0"}, {"2": "dot"}),
    "spectral_norm_rows": (each(SN, layers=(0,)), VECTOR, {"2"}, {"0": "dot"}),
    "spectral_norm_conv": (each(SN, convnet, (0,)), IMAGE, {"3"}, {"0": "dot"}),
    "spectral_norm_old": (
        each(nn.utils.spectral_norm, layers=(2,)),
        VECTOR,
        {"0"},
        {"2": "dot"},
    ),
    "spectral_norm_of_a_stream": (lambda: NormedStream(SN), VECTOR, set(), {"a": "weight_norm"}),
    "orthogonal": (each(parametrizations.orthogonal), VECTOR, set(), {"0": "unknown_op"}),
    "orthogonal_cayley": (
        each(lambda own: parametrizations.orthogonal(own, orthogonal_map="cayley"), layers=(0,)),
        VECTOR,
        {"2"},
        {"0": "unknown_op"},
    ),
    "parametrised_abs": (
        each(parametrised(lambda _: Transformed(torch.abs))),
        VECTOR,
        {"2"},
        {"0": "product"},
    ),
    "parametrised_square": (
        each(parametrised(lambda _: Transformed(lambda w: w * w))),
        VECTOR,
        {"2"},
        {"0": "product"},
    ),
    "parametrised_exp": (
        each(parametrised(lambda _: Transformed(torch.exp))),
        VECTOR,
        {"2"},
        {"0": "product"},
    ),
    "resting_consumer": (resting("2."), VECTOR, {"2"}, {"0": "requires_grad"}),
    "resting_both": (resting("0.", "2."), VECTOR, {"2"}, {"0": "requires_grad"}),
    "resting_backbone": (
        resting("0.", "1.", "3.", make=convnet),
        IMAGE,
        {"3"},
        {"0": "requires_grad"},
    ),
    "positions": (
        Positions,
        torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(0)),
        {"embed", "place", "a"},
        {"place": "vocabulary"},
    ),
    "observers": (observed, VECTOR, set(), {"0": "unknown_op"}),
}
