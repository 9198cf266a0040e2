"""The trainable parameters and frozen modules of a phase: applied, and enforced."""

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
from lit_finetune.freezing.weight_averaging import Statistics, restore_statistics, save_statistics
from lit_finetune.modules.fsdp1 import parameters_by_name, unpruned_name
from lit_finetune.schedules.plan import Plan

Parameters = Mapping[str, nn.Parameter]


class TrainableState:
    """Which parameters require a gradient and which modules stay in eval mode, phase by phase.

    Hooks of the module and other callbacks may change both; `enforce` sets them again as in the
    plan. Auxiliary networks are not changed.

    Args:
        plan: The run's plan.
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
        self._auxiliary: dict[str, nn.Parameter] = {}

    def norms(self, module: nn.Module) -> frozenset[str]:
        """The parameters of normalisation layers that train in frozen blocks, too."""
        norms = norm_parameters(module) if self.train_bn else frozenset()
        return norms - self.plan.user_frozen - set(self.plan.auxiliary)

    def apply_phase(self, module: nn.Module, phase: int) -> None:
        """Let the parameters of a phase require a gradient, and no others.

        Raises:
            ValueError: The module no longer has the planned layers.
        """
        named = parameters_by_name(module)
        planned = {name for block in self.plan.blocks for name in block.parameters}
        self._parameters = {
            name if name in planned else unpruned_name(name): parameter
            for name, parameter in named.items()
            if name not in self.plan.auxiliary
        }
        self._auxiliary = {name: named[name] for name in self.plan.auxiliary if name in named}
        self._trainable = self.plan.trainable(phase) | self.norms(module)
        refuse_missing(self._trainable, named)
        set_trainable(
            module,
            self._trainable,
            user_frozen=self.plan.user_frozen,
            excluded=frozenset(self.plan.auxiliary),
        )

    def newly_trained(self) -> dict[str, nn.Parameter]:
        """The parameters that have started to train since the last call."""
        new = self._trainable - self._trained
        self._trained = self._trainable
        return {name: each for name, each in self._parameters.items() if name in new}

    def freeze_modules(self, module: nn.Module) -> None:
        """Put the frozen modules into eval mode, and those no longer frozen into training mode."""
        before = self.frozen
        self.frozen = frozen_modules(
            module,
            self.plan.blocks,
            norms_train=self.train_bn,
            excluded=frozenset(self.plan.auxiliary),
        )
        if not before:
            self._in_eval = {id(each) for each in self.frozen if not each.training}
        restore_training(before)
        enforce_eval(self.frozen)
        self._statistics = save_statistics(self.frozen)

    def enforce(self) -> list[str]:
        """Set `requires_grad`, modes and statistics again as in the plan.

        Returns:
            The parameters whose `requires_grad` was not as in the plan.
        """
        overruled = self._changed()
        for name in overruled:
            parameter = self._parameters[name]
            parameter.requires_grad_(name in self._trainable)
            if name not in self._trainable:
                parameter.grad = None
        enforce_eval(self.frozen)
        restore_statistics(self._statistics)
        return overruled

    def refuse_changed(self) -> None:
        """Refuse a step whose forward did not follow the plan.

        Raises:
            ValueError: A planned parameter did not train, or frozen statistics changed.
        """
        if frozen := [name for name in self._changed() if name in self._trainable]:
            raise ValueError(
                "`training_step`, or a hook during the step, sets requires_grad=False on what the"
                f" schedule trains: {some_of(frozen, 3)}. Leave `requires_grad` to the schedule."
            )
        if unexpected := self._trained_auxiliary():
            raise ValueError(
                "The loss gives gradients to networks that do not seem to train"
                f" ({some_of(unexpected, 3)}), and none to the parameters that the schedule trains"
                f" ({some_of(sorted(self._trainable), 3)}). Name in the schedule what should train,"
                " and give all of it to the optimizer."
            )
        if any(module.training for module in self.frozen) and self._have_statistics_changed():
            raise ValueError(
                "`training_step` puts frozen blocks into training mode, and their batch statistics"
                " changed. Call `train()` in a hook before the step, such as"
                " `on_train_batch_start`, or leave it out."
            )

    def refuse_unused(self, loss: Tensor) -> None:
        """Refuse a loss that does not depend on a trainable parameter.

        Raises:
            ValueError: Names the trainable parameters.
        """
        if isinstance(loss, Tensor) and not loss.requires_grad:
            raise ValueError(
                "The loss does not depend on anything that trains in this phase of the schedule:"
                f" {some_of(sorted(self._trainable), 3)}. Name what should train, for instance the"
                " module's last layer; or check whether `training_step` detaches its output, by"
                " `detach()` or `torch.no_grad()`."
            )

    def release(self) -> None:
        """Restore the modes of frozen modules; those in eval mode before the run stay in it."""
        restore_training(module for module in self.frozen if id(module) not in self._in_eval)
        self.frozen, self._statistics, self._in_eval = [], [], set()

    def _changed(self) -> list[str]:
        return [
            name
            for name, parameter in self._parameters.items()
            if parameter.requires_grad != (name in self._trainable)
        ]

    def _trained_auxiliary(self) -> list[str]:
        """The parameters of auxiliary networks with gradients, if no trainable one has any."""
        unexpected = [
            name for name, parameter in self._auxiliary.items() if parameter.grad is not None
        ]
        trained = [self._parameters[n] for n in self._trainable if n in self._parameters]
        return [] if any(parameter.grad is not None for parameter in trained) else unexpected

    def _have_statistics_changed(self) -> bool:
        return any(
            not torch.equal(buffer, saved.values[name])
            for saved in self._statistics
            if saved.layer.training
            for name, buffer in saved.buffers.items()
        )


def refuse_lazy(module: nn.Module) -> None:
    """Refuse lazy layers that have never been run, and so have no parameters yet.

    Raises:
        ValueError: Names the layers.
    """
    if lazy := [name for name, parameter in module.named_parameters() if is_lazy(parameter)]:
        raise ValueError(
            f"Lazy layers have no sizes yet: {some_of(lazy, 3)}. Show the module a batch once, in"
            " `__init__`, `setup` or `configure_model`, or give the layers their sizes."
        )


def refuse_missing(names: Iterable[str], parameters: Parameters) -> None:
    """Refuse to continue if planned parameters no longer exist.

    Raises:
        ValueError: Names the parameters.
    """
    present = {*parameters, *map(unpruned_name, parameters)}
    if missing := [name for name in names if name not in present]:
        raise ValueError(
            f"The module has other layers than when its training was planned: {some_of(missing, 3)}"
            " is missing. Build, exchange and reparametrise layers in `__init__`, `setup` or"
            " `configure_model`."
        )


def refuse_exchanged(before: Parameters, now: Parameters, *, by_name: bool = False) -> None:
    """Refuse layers that were added, removed or exchanged after the training was planned.

    Args:
        before: The module's parameters when it was planned.
        now: Its parameters now.
        by_name: Whether to compare only names, since the strategy exchanges parameters itself.

    Raises:
        ValueError: Says where layers may be built.
    """
    planned = {unpruned_name(name): parameter for name, parameter in before.items()}
    present = {unpruned_name(name): parameter for name, parameter in now.items()}
    other = [
        name
        for name in dict.fromkeys([*planned, *present])
        if name not in planned
        or name not in present
        or not (by_name or planned[name] is present[name])
    ]
    if other:
        raise ValueError(
            "A hook of the module, or another callback, has changed layers after the schedule was"
            f" planned: {some_of(other, 3)}. Build and exchange layers in `__init__`, `setup` or"
            " `configure_model`."
        )
