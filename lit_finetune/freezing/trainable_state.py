"""What trains of a module in a phase, and what is held frozen: applied, and kept so."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lit_finetune._errors import some_of
from lit_finetune.blocks.norm_layers import norm_parameters
from lit_finetune.freezing.freeze import (
    enforce_eval,
    frozen_modules,
    restore_training,
    set_trainable,
)
from lit_finetune.freezing.weight_averaging import Statistics, restore_statistics, take_statistics
from lit_finetune.modules.fsdp1 import parameters_by_name, unpruned_name
from lit_finetune.schedules.plan import Plan

Parameters = Mapping[str, nn.Parameter]


class TrainableState:
    """Which parameters require a gradient and which modules stay in eval mode, phase by phase.

    Hooks of the module and other callbacks may set both; `enforce` sets them again as the plan
    says. Networks beside the one that trains are left as they are.

    Args:
        plan: Of the run.
        train_bn: Whether normalisation layers train in frozen blocks, too.
    """

    def __init__(self, plan: Plan, *, train_bn: bool) -> None:
        self.plan = plan
        self.train_bn = train_bn
        self.frozen: list[nn.Module] = []
        self._statistics: list[Statistics] = []
        self._parameters: dict[str, nn.Parameter] = {}
        self._trainable: frozenset[str] = frozenset()
        self._trained: frozenset[str] = frozenset()
        self._in_eval: set[int] = set()
        self._beside: dict[str, nn.Parameter] = {}

    def norms(self, module: nn.Module) -> frozenset[str]:
        """The parameters of normalisation layers that train whether or not their block does."""
        norms = norm_parameters(module) if self.train_bn else frozenset()
        return norms - self.plan.user_frozen - set(self.plan.auxiliary)

    def begin(self, module: nn.Module, phase: int) -> None:
        """Let the parameters of a phase require a gradient, and no others.

        Raises:
            ValueError: The module no longer has the layers that were planned with.
        """
        named = parameters_by_name(module)
        planned = {name for block in self.plan.blocks for name in block.parameters}
        self._parameters = {
            name if name in planned else unpruned_name(name): parameter
            for name, parameter in named.items()
            if name not in self.plan.auxiliary
        }
        self._beside = {name: named[name] for name in self.plan.auxiliary if name in named}
        self._trainable = self.plan.trainable(phase) | self.norms(module)
        refuse_missing(self._trainable, named)
        set_trainable(
            module,
            self._trainable,
            user_frozen=self.plan.user_frozen,
            untouched=frozenset(self.plan.auxiliary),
        )

    def joined(self) -> dict[str, nn.Parameter]:
        """What trains now and did not when this was asked for the last time."""
        new = self._trainable - self._trained
        self._trained = self._trainable
        return {name: each for name, each in self._parameters.items() if name in new}

    def hold_frozen(self, module: nn.Module) -> None:
        """Hold what is frozen now in eval mode, and free what is no longer."""
        before = self.frozen
        self.frozen = frozen_modules(
            module,
            self.plan.blocks,
            norms_train=self.train_bn,
            untouched=frozenset(self.plan.auxiliary),
        )
        if not before:
            self._in_eval = {id(each) for each in self.frozen if not each.training}
        restore_training(before)
        enforce_eval(self.frozen)
        self._statistics = take_statistics(self.frozen)

    def enforce(self) -> list[str]:
        """Set again what someone has set otherwise.

        Returns:
            The parameters whose `requires_grad` was not as the plan says.
        """
        overruled = self._otherwise()
        for name in overruled:
            parameter = self._parameters[name]
            parameter.requires_grad_(name in self._trainable)
            if name not in self._trainable:
                parameter.grad = None
        enforce_eval(self.frozen)
        restore_statistics(self._statistics)
        return overruled

    def refuse_otherwise(self) -> None:
        """Refuse a step whose forward pass was run otherwise than the plan says.

        Raises:
            ValueError: A parameter that should train did not, or frozen statistics moved.
        """
        if lost := [name for name in self._otherwise() if name in self._trainable]:
            raise ValueError(
                "`training_step`, or a hook during the step, sets requires_grad=False on what the"
                f" schedule trains: {some_of(lost, 3)}. Leave `requires_grad` to the schedule."
            )
        if wrong := self._trained_beside():
            raise ValueError(
                "The loss gives gradients to networks that were taken for such as run beside the"
                f" one that trains ({some_of(wrong, 3)}), and none to what the schedule trains"
                f" ({some_of(sorted(self._trainable), 3)}). Name in the schedule what should train,"
                " and give all of it to the optimizer."
            )
        if any(module.training for module in self.frozen) and self._have_moved():
            raise ValueError(
                "`training_step` puts frozen blocks into training mode, and their batch statistics"
                " moved. Call `train()` in a hook before the step, such as"
                " `on_train_batch_start`, or leave it out."
            )

    def refuse_unused(self, loss: Tensor) -> None:
        """Refuse a loss that nothing of what trains takes part in.

        Raises:
            ValueError: Names what trains.
        """
        if isinstance(loss, Tensor) and not loss.requires_grad:
            raise ValueError(
                "The loss does not depend on anything that trains in this phase of the schedule:"
                f" {some_of(sorted(self._trainable), 3)}. Name what should train, for instance the"
                " layer that gives the module's output; or `training_step` cuts it off, by"
                " `detach()` or `torch.no_grad()`."
            )

    def end(self) -> None:
        """Let go of what is held; what was in eval mode before and never trained stays in it."""
        restore_training(module for module in self.frozen if id(module) not in self._in_eval)
        self.frozen, self._statistics, self._in_eval = [], [], set()

    def _otherwise(self) -> list[str]:
        return [
            name
            for name, parameter in self._parameters.items()
            if parameter.requires_grad != (name in self._trainable)
        ]

    def _trained_beside(self) -> list[str]:
        """The parameters of networks beside that get gradients, where nothing that trains does."""
        wrong = [name for name, parameter in self._beside.items() if parameter.grad is not None]
        trained = [self._parameters[n] for n in self._trainable if n in self._parameters]
        return [] if any(parameter.grad is not None for parameter in trained) else wrong

    def _have_moved(self) -> bool:
        return any(
            not torch.equal(buffer, noted.values[name])
            for noted in self._statistics
            if noted.layer.training
            for name, buffer in noted.buffers.items()
        )


def refuse_lazy(module: nn.Module) -> None:
    """Refuse lazy layers that have never been run, and so have no parameters yet.

    Raises:
        ValueError: Names them.
    """
    if lazy := [name for name, parameter in module.named_parameters() if is_lazy(parameter)]:
        raise ValueError(
            f"Lazy layers have no sizes yet: {some_of(lazy, 3)}. Show the module a batch once, in"
            " `__init__`, `setup` or `configure_model`, or give the layers their sizes."
        )


def refuse_missing(names: Iterable[str], parameters: Parameters) -> None:
    """Refuse to go on where planned parameters are no longer there.

    Raises:
        ValueError: Names them.
    """
    have = {*parameters, *map(unpruned_name, parameters)}
    if missing := [name for name in names if name not in have]:
        raise ValueError(
            f"The module has other layers than when its training was planned: {some_of(missing, 3)}"
            " is missing. Build, exchange and reparametrise layers in `__init__`, `setup` or"
            " `configure_model`."
        )


def refuse_exchanged(before: Parameters, now: Parameters, *, by_name: bool = False) -> None:
    """Refuse layers that were added, taken away or exchanged after the training was planned.

    Args:
        before: The module's parameters when it was planned.
        now: Its parameters now.
        by_name: Whether names alone count, since the strategy exchanges parameters itself.

    Raises:
        ValueError: Says where layers may be built.
    """
    plain = {unpruned_name(name): parameter for name, parameter in before.items()}
    here = {unpruned_name(name): parameter for name, parameter in now.items()}
    other = [
        name
        for name in dict.fromkeys([*plain, *here])
        if name not in plain or name not in here or not (by_name or plain[name] is here[name])
    ]
    if other:
        raise ValueError(
            "A hook of the module, or another callback, has changed layers after the schedule was"
            f" planned: {some_of(other, 3)}. Build and exchange layers in `__init__`, `setup` or"
            " `configure_model`."
        )
