"""Keep the batch statistics of auxiliary networks, also in training mode."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchmetrics import Metric

from lit_finetune.feature_cache.key import bit_sums

_NUM_VALUE_CHECKS = 2
"""The number of first checks that compare the values of parameters, to detect `.data`."""


@dataclass(slots=True)
class _NetworkState:
    network: nn.Module
    parameters: dict[str, Tensor]
    sums: list[int]
    versions: list[tuple[int, int]]
    buffers: list[Tensor]
    values: list[Tensor]
    num_checks: int = 0
    is_reported: bool = False

    def is_training(self) -> bool:
        """Whether a module in it is in training mode and may update its buffers."""
        return bool(self.buffers) and any(each.training for each in self.network.modules())

    def has_changed_parameters(self, *, by_value: bool) -> bool:
        """Whether the parameters have changed, for example by a moving average."""
        by_value = by_value or self.num_checks < _NUM_VALUE_CHECKS
        self.num_checks += 1
        if _storage_versions(self.parameters.values()) != self.versions:
            return True
        return by_value and bit_sums(self.parameters) != self.sums

    def has_changed_buffers(self) -> bool:
        pairs = zip(self.buffers, self.values, strict=True)
        return any(not torch.equal(buffer, value) for buffer, value in pairs)


class FixedNetworks:
    """Restores the buffers of untrained networks, which training mode would update.

    A network whose parameters change, such as a teacher that is a moving average of the student, is
    left alone from then on, with its updated statistics.

    >>> teacher = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> fixed = FixedNetworks({"teacher": teacher})
    >>> _ = teacher(torch.ones(3, 2))
    >>> fixed.restore(), teacher[1].num_batches_tracked.item()
    (['teacher'], 0)

    Args:
        networks: The networks by name.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self._states = {name: _record_state(network) for name, network in networks.items()}

    @torch.no_grad()
    def restore(self, *, by_value: bool = False) -> list[str]:
        """Restore the buffers of networks whose parameters have not changed.

        Args:
            by_value: Whether to compare the values of parameters, not only their storage version.

        Returns:
            The names of networks whose buffers had changed, each only once.
        """
        changed = []
        for name, state in list(self._states.items()):
            if not state.is_training():
                continue
            if state.has_changed_parameters(by_value=by_value):
                del self._states[name]
                continue
            if not state.is_reported and state.has_changed_buffers():
                state.is_reported = True
                changed.append(name)
            torch._foreach_copy_(state.buffers, state.values)
        return changed

    @torch.no_grad()
    def restore_settled(self) -> None:
        """Restore the buffers of networks that have not changed in the first checks."""
        for state in self._states.values():
            is_settled = state.num_checks >= _NUM_VALUE_CHECKS and state.is_training()
            if is_settled and not state.has_changed_parameters(by_value=False):
                torch._foreach_copy_(state.buffers, state.values)


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
        f"{' and '.join(map(repr, names))} does not train, but is in training mode, which would"
        " gather statistics: they are restored. In that mode its output depends on the statistics"
        " of each batch; to use its own, put it into eval mode (`eval()`) where it is built."
    )


def _record_state(network: nn.Module) -> _NetworkState:
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    buffers = [buffer for buffer in network.buffers() if not buffer.is_inference()]
    return _NetworkState(
        network=network,
        parameters=parameters,
        sums=bit_sums(parameters),
        versions=_storage_versions(parameters.values()),
        buffers=buffers,
        values=[buffer.clone() for buffer in buffers],
    )


def _storage_versions(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
