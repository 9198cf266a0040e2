"""Detect changes of a network's frozen first blocks while their cached output is used."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from lit_finetune.feature_cache.key import bit_sums
from lit_finetune.splitting.split_point import depends_on_mode


class PrefixWatch:
    """The parameters, buffers and modes of frozen blocks, to detect changes.

    Writing to a tensor or replacing it is detected at once, by comparing a few integers for each
    tensor. Writing that torch does not record (`.data`, NumPy) is only detected by comparing
    values.

    Args:
        network: The network with the tensors.
        tensors: The blocks' tensors, by their names in the network.
        modules: All modules of the blocks.
    """

    def __init__(
        self, network: nn.Module, tensors: Mapping[str, Tensor], modules: Iterable[nn.Module]
    ) -> None:
        self._tensors = tensors
        self._slots = [(_owner(network, name), name.rpartition(".")[2]) for name in tensors]
        self._stateful = [module for module in modules if may_change_in_training(module)]
        self._storage_versions = _storage_versions(tensors)
        self._sums = bit_sums(tensors)

    def is_training(self) -> bool:
        """Whether a tensor requires a gradient, or a module updates its statistics."""
        is_updating = any(module.training for module in self._stateful)
        return is_updating or any(tensor.requires_grad for tensor in self._tensors.values())

    def has_changed(self) -> bool:
        """Whether a tensor has other values, as far as torch records writing."""
        pairs = zip(self._slots, self._tensors.values(), strict=True)
        if any(
            _current_tensor(owner, attribute) is not tensor for (owner, attribute), tensor in pairs
        ):
            return True
        places = _storage_versions(self._tensors)
        if places == self._storage_versions:
            return False
        self._storage_versions = places
        return self.has_other_values()  # averaged weights may be swapped in and out

    def has_other_values(self) -> bool:
        """Whether the values have changed, however they were written."""
        return bit_sums(self._tensors) != self._sums


def may_change_in_training(module: nn.Module) -> bool:
    """Whether a module may behave differently in training: it has buffers, or reads its mode."""
    has_buffers = next(module.buffers(recurse=False), None) is not None
    return has_buffers or depends_on_mode(module, inner=False)


def _owner(network: nn.Module, name: str) -> nn.Module:
    return network.get_submodule(name.rpartition(".")[0])


def _current_tensor(owner: nn.Module, attribute: str) -> Tensor | None:
    return owner._parameters.get(attribute, owner._buffers.get(attribute))


def _storage_versions(tensors: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    return [(tensor.data_ptr(), tensor._version) for tensor in tensors.values()]
