"""A training run whose model grows: what belongs to it, and how it is saved and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import checkpoint
from .distributed import find_team
from .errors import FxgrowError, InputError, UnsupportedError
from .ledger import Ledger
from .sharding import is_sharded, shard_state, whole_state
from .wrapping import check_wrapping, move_optimizer, parameters_of, rewrap
from .wrapping import unwrap as plain_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .budgets import Size
    from .growing import GrowthSettings
    from .history import History
    from .ir import Growth

__all__ = ["Run"]


class Run:
    """Model, optimizers and everything else that must grow, or be saved, together.

    Parameters
    ----------
    model : torch.nn.Module
        Wrapped or not.
    optimizers : sequence of torch.optim.Optimizer
    settings : GrowthSettings
    mode : {"min", "max"}
    ema : AveragedModel or None
    new_options : dict or None
    objects : dict of str to object
        Tracked, with ``state_dict``.
    unwrap, wrap : callable or None
    example_inputs : tensor, tuple, dict or None

    See Also
    --------
    fxgrow.Grower : decides when this grows.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        settings: GrowthSettings,
        *,
        mode: str,
        ema: Any,
        new_options: Mapping[str, Any] | None,
        objects: Mapping[str, Any],
        unwrap: Callable[[torch.nn.Module], torch.nn.Module] | None,
        wrap: Callable[[torch.nn.Module], torch.nn.Module] | None,
        example_inputs: Any,
    ) -> None:
        self._settings = settings
        self._optimizers = tuple(optimizers)
        self._objects = objects
        self._new_options = new_options
        self.ema = ema
        self._ledger = Ledger(mode)
        self._epoch_random: dict[str, Any] | None = None
        self._resumed = False
        self._wrap = wrap
        self._model = model
        self._inside = None if unwrap is None else unwrap(model)
        if wrap is None:
            check_wrapping(model)
        self._team = find_team(model, settings.options.get("process_group"))
        self._check_optimizers()
        with self._team.together():
            module = self.module
            self._example = settings.example(module, example_inputs, self._team)
            self._size = settings.size(module, self._example)

    def _check_optimizers(self) -> None:
        inside = self._model if self._inside is None else self._inside
        ours = {id(parameter) for parameter in parameters_of(inside).values()}
        for optimizer in self._optimizers:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if not held & ours:
                raise InputError(
                    f"the {type(optimizer).__name__} holds no parameter of the model; pass the "
                    "optimizer that was built for it"
                )
            if isinstance(optimizer, torch.optim.LBFGS) and self._settings.fill != "reset":
                raise UnsupportedError(
                    "LBFGS has a history that spans all parameters and can't grow; take "
                    "fill='reset', which drops it at every growth"
                )

    # ------------------------------------------------------------------- what there is

    @property
    def model(self) -> torch.nn.Module:
        """The model to go on with, wrapped as the one given was."""
        return self._model

    @property
    def module(self) -> torch.nn.Module:
        """The model without its wrappers.

        Under FSDP2 a copy with whole parameters, gathered now: all ranks must ask for it.
        """
        return plain_of(self._model if self._inside is None else self._inside)

    @property
    def generators(self) -> Mapping[str, torch.Generator]:
        """Generators that belong to the run: those of the data, and tracked ones."""
        return self._settings.generators

    @property
    def step(self) -> int:
        """Steps that have ended."""
        return self._ledger.now.step

    @property
    def epoch(self) -> int:
        """Epochs that have ended: where ``range(grower.epoch, epochs)`` goes on."""
        return self._ledger.now.epoch

    @property
    def round(self) -> int:
        """Growths made so far."""
        return self._ledger.now.round

    @property
    def size(self) -> Size:
        """Present size of the model."""
        return self._size

    @property
    def finished(self) -> str:
        """Why there will be no further growth, or "".

        Set when a growth is due that a stop condition, or the end of the budgets, forbids.
        """
        return self._ledger.finished

    @property
    def history(self) -> History:
        """All growths and metrics so far."""
        return self._ledger.history

    # ------------------------------------------------------------------- training

    def batches(self) -> Iterator[Any]:
        """Iterate over the data once; in a resumed run, from where the checkpoint was.

        Batches that were done before a checkpoint in the middle of an epoch are fetched
        and dropped, with the random states that they had, so that the rest is the same.

        Yields
        ------
        tuple
            ``(inputs, targets)``, as the data yield them.

        Raises
        ------
        InputError
            When the Grower has no data.
        """
        data, generators = self._settings.data, self._settings.generators
        if data is None:
            raise InputError("there are no batches without data; pass data= to Grower")
        resumed, self._resumed = self._resumed, False
        if not resumed or self._epoch_random is None:
            self._epoch_random = checkpoint.random_state(generators)
            yield from data
            return
        now = checkpoint.random_state(generators)
        checkpoint.set_random_state(self._epoch_random, generators)
        iterator = iter(data)
        for _ in range(self._ledger.now.step_in_epoch):
            next(iterator, None)
        checkpoint.set_random_state(now, generators)
        yield from iterator

    # ------------------------------------------------------------------- growth

    def _follow(self, module: torch.nn.Module, growths: Sequence[Growth]) -> None:
        """Go on with the last of some growths, which began at ``module``, the plain model."""
        plain = dict(module.named_parameters())
        for optimizer in self._optimizers:
            move_optimizer(optimizer, self._model, plain)  # moves under FSDP2 only
        try:
            for growth in growths:
                self._migrate(growth)
        except FxgrowError:
            for optimizer in self._optimizers:
                move_optimizer(optimizer, plain, self._model)
            raise
        self._adopt(growths[-1].module if growths else module)

    def _migrate(self, growth: Growth) -> None:
        for optimizer in self._optimizers:
            growth.migrate(
                optimizer,
                fill=self._settings.fill,
                new_options=self._new_options,
                schedulers=[
                    each
                    for each in self._objects.values()
                    if getattr(each, "optimizer", None) is optimizer
                ],
            )
        if self.ema is not None:
            self.ema = growth.migrate_ema(self.ema)

    def _adopt(self, module: torch.nn.Module) -> None:
        """Go on with a plain module, wrapped as the present model is."""
        before = dict(module.named_parameters())
        model = rewrap(module, like=self._model, wrap=self._wrap)
        for optimizer in self._optimizers:
            move_optimizer(optimizer, before, model)
        self._model = model
        self._inside = None if self._inside is None else module

    # ------------------------------------------------------------------- checkpoints

    def record(self) -> dict[str, Any]:
        """Return counters, metrics and growths, without weights, in JSON types.

        For frameworks that keep weights and optimizers themselves; see :meth:`restore`.
        """
        return dict(checkpoint.plain({**self._ledger.to_dict(), "emit": self._settings.emit}, ""))

    def restore(
        self,
        record: Mapping[str, Any],
        weights: Mapping[str, torch.Tensor] | None = None,
        *,
        grown: bool = False,
    ) -> torch.nn.Module:
        """Grow as a record says, for the shapes; optimizers and average follow.

        Parameters
        ----------
        record : dict
            What :meth:`record` returned.
        weights : dict of str to torch.Tensor, optional
            State dict of the grown module, which is loaded.
        grown : bool
            The model has been given its grown shape already (:func:`fxgrow.regrowth.regrown`).

        Returns
        -------
        torch.nn.Module
            The model to go on with.

        Raises
        ------
        InputError
            When the record is damaged, or does not fit the model or the growths that this
            Grower has made already; nothing has changed then.
        """
        ledger = Ledger.from_dict(record, self._ledger.mode)
        made = len(ledger.steps if grown else self._ledger.steps)
        if not grown and ledger.steps[:made] != self._ledger.steps:
            raise InputError(
                "the checkpoint tells of other growths than this Grower has made; "
                "load it into a Grower on the model as it was before growth"
            )
        with self._team.together():
            before = self.module
            growths = checkpoint.regrow(
                before, ledger.steps[made:], self._example, self._settings.again, weights
            )
            module = growths[-1].module if growths else before
            if weights is not None:
                module.load_state_dict(weights)
            if growths:
                self._size = self._settings.size(module, self._example)
            if growths or is_sharded(self._model):
                self._follow(before, growths)
        self._ledger = ledger
        return self._model

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, in plain types and tensors.

        Growths, weights, optimizers, average, tracked objects, counters, metrics and all
        random states. As ever in torch, the tensors are the live ones; under FSDP2 they are
        gathered, whole on every rank. All ranks must call this.
        """
        now = {"now": checkpoint.random_state(self._settings.generators)}
        return {
            "record": self.record(),
            "module": self.module.state_dict(),
            "objects": {
                name: whole_state(each.state_dict())
                if is_sharded(self._model)
                else each.state_dict()
                for name, each in self._stateful().items()
            },
            "random": self._team.gather({**now, "epoch": self._epoch_random}, "a checkpoint"),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the model grows to its size, and takes all of it.

        The Grower must be made as the one that was saved, on the model and optimizer as
        they were before any growth. The current model is :attr:`model` afterwards.

        Parameters
        ----------
        state : dict
            What :meth:`state_dict` returned.

        Raises
        ------
        InputError
            When the state does not fit.
        """
        checkpoint.check_parts(state, self._stateful())
        self.restore(state["record"], state["module"])
        for name, each in self._stateful().items():
            checkpoint.load_object(name, each, state["objects"][name])
        if is_sharded(self._model):
            for optimizer in self._optimizers:
                shard_state(optimizer)
        # Of each rank; other numbers of ranks than before all go on as the first did.
        known = len(state["random"]) == self._team.size
        random = state["random"][self._team.rank if known else 0]
        self._epoch_random, self._resumed = random["epoch"], True
        checkpoint.set_random_state(random["now"], self._settings.generators)

    def save(self, path: str | Path) -> None:
        """Write :meth:`state_dict` to a file, atomically: a kill leaves the older one whole.

        All ranks must call this; rank 0 writes.

        Parameters
        ----------
        path : str or Path
            ``torch.load(path, weights_only=True)`` can read it: it holds no code.

        Raises
        ------
        FileError
            When the file can't be written, or a tracked object's state is not plain.
        """
        with self._team.together():
            state = self.state_dict()
            if self._team.rank == 0:
                checkpoint.write_state(state, path)

    def resume(self, path: str | Path) -> torch.nn.Module:
        """Go on from a file if there is one, else start anew.

        Parameters
        ----------
        path : str or Path
            What :meth:`save` wrote, or will write. Half-written temporary files beside it,
            left by writers that were killed, are removed.

        Returns
        -------
        torch.nn.Module
            The model to go on with.

        Raises
        ------
        FileError
            When the file is damaged.
        InputError
            When it does not fit this model.
        """
        checkpoint.remove_leftovers(path)
        if Path(path).exists():
            self.load_state_dict(checkpoint.read_state(path))
        return self._model

    def _stateful(self) -> dict[str, Any]:
        optimizers = {f"optimizer{n}": each for n, each in enumerate(self._optimizers)}
        average = {} if self.ema is None else {"ema": self.ema}
        return {**optimizers, **average, **{f"track.{k}": v for k, v in self._objects.items()}}
