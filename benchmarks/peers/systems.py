"""The systems that are compared, each used as its own documentation says."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning
from torch.optim import Optimizer
from typing_extensions import override

from lit_finetune.callbacks import FreezeUnfreezeCallback

BLOCKS = {1: ("backbone.layer2",), 2: ("backbone.layer1",)}
WHOLE_BACKBONE = {1: ("backbone.layer2", "backbone.layer1")}


class NotOfferedError(Exception):
    """A system has no way to say what is asked for."""


@dataclass(frozen=True)
class Request:
    """Train the head from epoch 0 on, and modules of the backbone from later epochs on."""

    unfreeze: Mapping[int, Sequence[str]] = field(default_factory=lambda: BLOCKS)
    """From epoch to the modules that start to train then."""
    scale: float | None = 0.1
    """Rate of the backbone as a multiple of the head's; None leaves it to the module's groups."""
    lr: float = 0.1
    """The head's rate at the start."""
    own_rates: Mapping[str, float] = field(default_factory=dict)
    """Where `scale` is None: the rates of the module's groups, for a system that must be told."""
    max_epochs: int = 4
    """The length of the run."""


class System(Protocol):
    """A way to unfreeze a network while it trains."""

    name: str
    package: str | None
    """The distribution that must be installed; None for what is in this checkout."""
    usage: str
    """How it is used here, as a sentence for the reader of the table."""
    by_block: bool
    """Whether it can unfreeze one block after another."""

    def prepare(self, model: LightningModule, request: Request) -> None:
        """What the user would do to a network before training."""

    def callbacks(self, request: Request) -> list[Callback]:
        """The callbacks that the user would give to the Trainer."""

    def fit(
        self, trainer: Trainer, model: LightningModule, train: Any, val: Any, resume: Path | None
    ) -> None:
        """Train on one loader and validate on another, from the start or from a checkpoint."""


class _WithCallbacks:
    """What most systems share: all is in the callbacks, and resuming is Lightning's own."""

    name: str
    package: str | None = "lightning"
    usage: str
    by_block: bool = True

    def prepare(self, model: LightningModule, request: Request) -> None:
        """Nothing."""

    def fit(
        self, trainer: Trainer, model: LightningModule, train: Any, val: Any, resume: Path | None
    ) -> None:
        """Train as with any callback."""
        trainer.fit(model, train, val, ckpt_path=resume)


class LitFinetune(_WithCallbacks):
    """The callback of this project."""

    name = "lit-finetune"
    package: str | None = None
    usage = "`FreezeUnfreezeCallback({0: head, 1: {modules: …, lr_scale: 0.1}, …})`."

    def callbacks(self, request: Request) -> list[Callback]:
        """The schedule, epoch by epoch."""
        schedule: dict[int, Any] = {0: "head"}
        for epoch, modules in request.unfreeze.items():
            phase = {"modules": list(modules)}
            schedule[epoch] = (
                phase if request.scale is None else phase | {"lr_scale": request.scale}
            )
        return [FreezeUnfreezeCallback(schedule)]


class WholeBackbone(_WithCallbacks):
    """Lightning's ready-made callback."""

    name = "BackboneFinetuning"
    by_block = False
    usage = (
        "Lightning's callback, with `unfreeze_backbone_at_epoch`, `backbone_initial_ratio_lr=0.1`"
        " and `lambda_func=lambda epoch: 1.0`, so that it does not raise the backbone's rate."
        " It unfreezes the backbone as a whole, in the first epoch in which a block was asked for."
    )

    def callbacks(self, request: Request) -> list[Callback]:
        """From the first epoch on that is asked for."""
        return [
            BackboneFinetuning(
                unfreeze_backbone_at_epoch=min(request.unfreeze),
                backbone_initial_ratio_lr=request.scale or 0.1,
                lambda_func=lambda epoch: 1.0,
            )
        ]


class Subclass(_WithCallbacks):
    """Lightning's base class, made into a schedule as its docstring shows."""

    name = "BaseFinetuning"
    usage = (
        "A subclass as in Lightning's docstring: `freeze(modules, train_bn=False)`, then"
        " `unfreeze_and_add_param_group(module, optimizer, initial_denom_lr=10)` for each module"
        " in its epoch."
    )

    def callbacks(self, request: Request) -> list[Callback]:
        """The subclass."""
        return [ScheduledFinetuning(request)]


class ScheduledFinetuning(BaseFinetuning):
    """Unfreezes modules in their epochs."""

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.request = request

    @override
    def freeze_before_training(self, pl_module: LightningModule) -> None:
        names = all_modules(self.request)
        self.freeze([pl_module.get_submodule(name) for name in names], train_bn=False)

    @override
    def finetune_function(
        self, pl_module: LightningModule, epoch: int, optimizer: Optimizer
    ) -> None:
        for name in self.request.unfreeze.get(epoch, ()):
            self.unfreeze_and_add_param_group(
                pl_module.get_submodule(name),
                optimizer,
                initial_denom_lr=1 / (self.request.scale or 0.1),
            )


class FinetuningScheduler(_WithCallbacks):
    """The package of that name, with an explicit schedule."""

    name = "finetuning-scheduler"
    package: str | None = "finetuning-scheduler"
    usage = (
        "`FinetuningScheduler` with an explicit schedule: `params` and `lr` of each phase,"
        " `max_transition_epoch`, `epoch_transitions_only=True`, `restore_best=False` (so that no"
        " weights are set back), `apply_lambdas_new_pgs=True`. Its rates are absolute: a tenth of"
        " the head's first one. Resumed through `trainer.ckpt_path`, as its documentation says."
    )

    def callbacks(self, request: Request) -> list[Callback]:
        """The callback; it brings its own checkpointing."""
        package = import_module("finetuning_scheduler")
        callback: Callback = package.FinetuningScheduler(
            ft_schedule=explicit_schedule(request),
            epoch_transitions_only=True,
            restore_best=False,
            apply_lambdas_new_pgs=True,
        )
        return [callback]

    @override
    def fit(
        self, trainer: Trainer, model: LightningModule, train: Any, val: Any, resume: Path | None
    ) -> None:
        """Resume as its documentation says, through an attribute of the Trainer."""
        if resume:
            trainer.ckpt_path = resume
        trainer.fit(model, train, val)


def explicit_schedule(request: Request) -> dict[int, dict[str, Any]]:
    r"""A schedule of finetuning-scheduler: a phase ends with the epoch that begins the next.

    >>> explicit_schedule(Request({2: ["backbone"]}, lr=1.0, max_epochs=3))[1]
    {'params': ['backbone\\..*'], 'max_transition_epoch': 3, 'lr': 0.1}
    """
    starts = sorted(request.unfreeze)
    schedule = {0: {"params": [r"head\..*"], "max_transition_epoch": starts[0]}}
    ends = [*starts[1:], request.max_epochs]
    for depth, (epoch, end) in enumerate(zip(starts, ends, strict=True), start=1):
        modules = request.unfreeze[epoch]
        schedule[depth] = {
            "params": [rf"{module}\..*" for module in modules],
            "max_transition_epoch": end,
            "lr": request.own_rates.get(modules[0], request.lr * (request.scale or 1.0)),
        }
    return schedule


class ByHand(_WithCallbacks):
    """The recipe of many a forum post."""

    name = "by hand"
    usage = (
        "`requires_grad_(False)` when the network is made; in `on_train_epoch_start`"
        " `requires_grad_(True)`, and `add_param_group` at a tenth of the head's rate for what the"
        " optimizer does not have."
    )

    @override
    def prepare(self, model: LightningModule, request: Request) -> None:
        for name in all_modules(request):
            model.get_submodule(name).requires_grad_(False)

    def callbacks(self, request: Request) -> list[Callback]:
        """The hook."""
        return [UnfreezeByHand(request)]


class UnfreezeByHand(Callback):
    """Unfreezes modules in their epochs."""

    def __init__(self, request: Request) -> None:
        self.request = request

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        optimizer = trainer.optimizers[0]
        for name in self.request.unfreeze.get(trainer.current_epoch, ()):
            module = pl_module.get_submodule(name).requires_grad_(True)
            known = {id(p) for group in optimizer.param_groups for p in group["params"]}
            new = [p for p in module.parameters() if id(p) not in known]
            if new:
                rate = optimizer.param_groups[0]["lr"] * (self.request.scale or 0.1)
                optimizer.add_param_group({"params": new, "lr": rate})


def all_modules(request: Request) -> Iterator[str]:
    """The modules that are frozen at first."""
    for names in request.unfreeze.values():
        yield from names


def version_of(system: System) -> str | None:
    """The version of what the system needs; None if that is not installed."""
    if system.package is None:
        return "this checkout"
    try:
        return f"{system.package} {version(system.package)}"
    except PackageNotFoundError:
        return None


SYSTEMS: tuple[System, ...] = (
    LitFinetune(),
    WholeBackbone(),
    Subclass(),
    FinetuningScheduler(),
    ByHand(),
)
