"""Keep the batch statistics of auxiliary networks, also in training mode."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchmetrics import Metric

from lit_finetune.blocks.norm_layers import is_norm
from lit_finetune.feature_cache.key import bit_sums

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(slots=True)
class _NormState:
    """The statistics of a norm layer, by the name of the buffer."""

    name: str
    module: nn.Module
    values: dict[str, Tensor]

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each buffer with its recorded value."""
        for name, value in self.values.items():
            buffer = self.module._buffers.get(name)
            if buffer is not None:
                yield buffer, value


@dataclass(slots=True)
class _NetworkState:
    parameters: dict[str, Tensor]
    sums: dict[str, int]
    versions: list[tuple[int, int]]
    norms: list[_NormState]
    is_reported: bool = False

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """The statistics that training mode updates, each with its recorded value."""
        return [pair for norm in self.norms if norm.module.training for pair in norm.pairs()]

    def has_changed_parameters(self, *, compare_all: bool) -> bool:
        """Whether the parameters have changed, for example by a moving average.

        Updates of `.data` are found by value: in a few parameters, or in all.
        """
        if _storage_versions(self.parameters.values()) != self.versions:
            return True
        names = list(self.parameters) if compare_all else _sample(list(self.parameters))
        return bit_sums({name: self.parameters[name] for name in names}) != [
            self.sums[name] for name in names
        ]


class FixedNetworks:
    """Restores the batch statistics of untrained networks, which training mode would update.

    Only norm layers in training mode are restored; other buffers, such as a queue of features, are
    the network's own. A network whose parameters change, such as a teacher that is a moving average
    of the student, is left alone from then on, with its updated statistics. Therefore nothing is
    restored before the hooks of the first optimizer step have run.

    >>> teacher = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> fixed = FixedNetworks({"teacher": teacher})
    >>> for _ in range(2):
    ...     fixed.begin_batch()
    ...     _ = teacher(torch.ones(3, 2))
    ...     print(fixed.before_step(), teacher[1].num_batches_tracked.item())
    [] 1
    ['teacher'] 0

    Args:
        networks: The networks by name.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        states = {name: _record_state(name, network) for name, network in networks.items()}
        self._states = {name: state for name, state in states.items() if state.norms}
        self._has_stepped = self._is_step_over = self._is_compared = False

    def begin_batch(self) -> None:
        """Note that a batch starts: an optimizer step before it is over."""
        self._is_step_over = self._has_stepped

    def before_step(self) -> list[str]:
        """Restore before an optimizer's step, except in the batch of the first one.

        Returns:
            As `restore`.
        """
        self._has_stepped = True
        return self.restore() if self._is_step_over else []

    @torch.no_grad()
    def restore(self, *, compare_all: bool = False) -> list[str]:
        """Restore the statistics of networks whose parameters have not changed.

        Without effect before the first optimizer step, unless all parameters are compared.

        Args:
            compare_all: Whether to compare the values of all parameters instead of a few.

        Returns:
            The names of networks whose statistics had changed, each only once.
        """
        if not (self._has_stepped or compare_all):
            return []
        compare_all, self._is_compared = compare_all or not self._is_compared, True
        changed = []
        for name, state in list(self._states.items()):
            if not (pairs := state.pairs()):
                continue
            if state.has_changed_parameters(compare_all=compare_all):
                del self._states[name]
                continue
            if not state.is_reported and any(not torch.equal(*pair) for pair in pairs):
                state.is_reported = True
                changed.append(name)
            torch._foreach_copy_([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        return changed

    @torch.no_grad()
    def restore_in_checkpoint(self, state_dict: dict[str, Any]) -> None:
        """Put the recorded statistics into a checkpoint, without a change to the networks.

        The first step's hooks may not have run yet.

        Args:
            state_dict: The state of the module, with the names of the networks as prefixes.
        """
        for state in self._states.values():
            if not state.pairs() or state.has_changed_parameters(compare_all=True):
                continue
            for norm in state.norms:
                values = {f"{norm.name}.{name}": value for name, value in norm.values.items()}
                found = values.keys() & state_dict.keys() if norm.module.training else ()
                state_dict.update({name: values[name].clone() for name in found})


def without_averaged_models(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """The networks of these names that are neither metrics nor averaged models.

    >>> module = nn.ModuleDict({"teacher": nn.Linear(2, 2), "mean": AveragedModel(nn.Linear(2, 2))})
    >>> list(without_averaged_models(module, module))
    ['teacher']
    """
    networks = {name: model.get_submodule(name) for name in names}
    averaging = Metric | AveragedModel
    return {name: each for name, each in networks.items() if not isinstance(each, averaging)}


def restored_line(names: Sequence[str]) -> str:
    """The message about networks whose statistics were restored."""
    return (
        f"{' and '.join(map(repr, names))} does not train, but has norm layers in training mode,"
        " which would gather statistics: these are restored. In that mode its output depends on the"
        " statistics of each batch; to use its own, put it into eval mode (`eval()`) where it is"
        " built."
    )


def _record_state(name: str, network: nn.Module) -> _NetworkState:
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    norms = [
        _NormState(f"{name}.{path}" if path else name, module, _statistics(module))
        for path, module in network.named_modules()
        if is_norm(module) and _statistics(module)
    ]
    return _NetworkState(
        parameters=parameters,
        sums=dict(zip(parameters, bit_sums(parameters), strict=True)) if norms else {},
        versions=_storage_versions(parameters.values()),
        norms=norms,
    )


def _statistics(norm: nn.Module) -> dict[str, Tensor]:
    buffers = {name: norm._buffers.get(name) for name in _STATISTICS}
    return {
        name: buffer.clone()
        for name, buffer in buffers.items()
        if buffer is not None and not buffer.is_inference()
    }


def _sample(names: Sequence[str]) -> list[str]:
    """The first name, the last, and two between.

    >>> _sample("abcdefg"), _sample("ab")
    (['a', 'c', 'e', 'g'], ['a', 'b'])
    """
    count = len(names)
    return [names[i] for i in sorted({0, count // 3, 2 * count // 3, count - 1} if names else ())]


def _storage_versions(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
