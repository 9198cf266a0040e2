"""Networks beside the one that trains keep their statistics, whatever mode they are in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchmetrics import Metric

from lit_finetune.feature_cache.key import bit_sums

_FIRST_LOOKS = 2
"""How often the values of parameters are compared at first: `.data` leaves no other trace."""


@dataclass(slots=True)
class _Noted:
    network: nn.Module
    parameters: dict[str, Tensor]
    sums: list[int]
    places: list[tuple[int, int]]
    buffers: list[Tensor]
    values: list[Tensor]
    looks: int = 0
    is_told: bool = False

    def is_awake(self) -> bool:
        """Whether something in it is in training mode, and may move what it gathers."""
        return bool(self.buffers) and any(each.training for each in self.network.modules())

    def is_moved(self, *, by_value: bool) -> bool:
        """Whether someone has written to the parameters, such as a moving average."""
        by_value = by_value or self.looks < _FIRST_LOOKS
        self.looks += 1
        if _places(self.parameters.values()) != self.places:
            return True
        return by_value and bit_sums(self.parameters) != self.sums

    def has_other_buffers(self) -> bool:
        pairs = zip(self.buffers, self.values, strict=True)
        return any(not torch.equal(buffer, value) for buffer, value in pairs)


class FixedNetworks:
    """Networks that nobody trains: in training mode too, their buffers stay as they were.

    A network whose parameters somebody moves, such as a teacher that follows the student by a
    moving average, is left alone from then on, with the statistics that it has gathered.

    >>> teacher = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> fixed = FixedNetworks({"teacher": teacher})
    >>> _ = teacher(torch.ones(3, 2))
    >>> fixed.restore(), teacher[1].num_batches_tracked.item()
    (['teacher'], 0)

    Args:
        networks: By name.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self._noted = {name: _noted(network) for name, network in networks.items()}

    @torch.no_grad()
    def restore(self, *, by_value: bool = False) -> list[str]:
        """Put back the buffers of those whose parameters nobody has moved.

        Args:
            by_value: Whether the values of parameters are compared, and not only where they lie.

        Returns:
            The names of networks whose buffers had moved, each once.
        """
        told = []
        for name, noted in list(self._noted.items()):
            if not noted.is_awake():
                continue
            if noted.is_moved(by_value=by_value):
                del self._noted[name]
                continue
            if not noted.is_told and noted.has_other_buffers():
                noted.is_told = True
                told.append(name)
            torch._foreach_copy_(noted.buffers, noted.values)
        return told

    @torch.no_grad()
    def restore_known(self) -> None:
        """Put back the buffers of those that have stood still for some steps."""
        for noted in self._noted.values():
            is_known = noted.looks >= _FIRST_LOOKS and noted.is_awake()
            if is_known and not noted.is_moved(by_value=False):
                torch._foreach_copy_(noted.buffers, noted.values)


def without_averages(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """The networks of these names that do not gather something by themselves.

    >>> module = nn.ModuleDict({"teacher": nn.Linear(2, 2), "mean": AveragedModel(nn.Linear(2, 2))})
    >>> list(without_averages(module, module))
    ['teacher']
    """
    found = {name: model.get_submodule(name) for name in names}
    gathers = Metric | AveragedModel
    return {name: each for name, each in found.items() if not isinstance(each, gathers)}


def kept_line(names: Sequence[str]) -> str:
    """What is said of networks whose statistics were put back."""
    return (
        f"{' and '.join(map(repr, names))}, beside the network that trains, would gather statistics"
        " in training mode although nobody trains it: they stay as they were. In that mode it"
        " answers by each batch's own statistics; for those that it has, put it into eval mode"
        " (`eval()`) where it is built."
    )


def _noted(network: nn.Module) -> _Noted:
    parameters: dict[str, Tensor] = dict(network.named_parameters())
    buffers = [buffer for buffer in network.buffers() if not buffer.is_inference()]
    return _Noted(
        network=network,
        parameters=parameters,
        sums=bit_sums(parameters),
        places=_places(parameters.values()),
        buffers=buffers,
        values=[buffer.clone() for buffer in buffers],
    )


def _places(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
