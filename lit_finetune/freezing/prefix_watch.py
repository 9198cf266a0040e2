"""See whether the first blocks of a network change while what they gave is used."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from lit_finetune.feature_cache.key import bit_sums
from lit_finetune.splitting.split_point import depends_on_mode


class PrefixWatch:
    """The parameters, buffers and modes of blocks that stand still, noted to be compared.

    Writing to a tensor, or putting another one in its place, is seen at once, at the price of a
    comparison of numbers per tensor. What is written past torch (`.data`, NumPy) is seen in the
    values alone.

    Args:
        network: It has the tensors.
        tensors: Those of the blocks, by their names in the network.
        modules: All modules of the blocks.
    """

    def __init__(
        self, network: nn.Module, tensors: Mapping[str, Tensor], modules: Iterable[nn.Module]
    ) -> None:
        self._tensors = tensors
        self._slots = [(_owner(network, name), name.rpartition(".")[2]) for name in tensors]
        self._movers = [module for module in modules if may_move(module)]
        self._places = _places(tensors)
        self._sums = bit_sums(tensors)

    def trains(self) -> bool:
        """Whether something requires a gradient by now, or moves its statistics."""
        is_moving = any(module.training for module in self._movers)
        return is_moving or any(tensor.requires_grad for tensor in self._tensors.values())

    def has_moved(self) -> bool:
        """Whether a tensor has other values, as far as torch takes note of writing."""
        pairs = zip(self._slots, self._tensors.values(), strict=True)
        if any(_in_slot(owner, own) is not tensor for (owner, own), tensor in pairs):
            return True
        places = _places(self._tensors)
        if places == self._places:
            return False
        self._places = places
        return self.has_other_values()  # averages are put in, and taken out again

    def has_other_values(self) -> bool:
        """Whether the values are others, however they were written."""
        return bit_sums(self._tensors) != self._sums


def may_move(module: nn.Module) -> bool:
    """Whether a module does something else in training: it has buffers, or asks for its mode."""
    has_buffers = next(module.buffers(recurse=False), None) is not None
    return has_buffers or depends_on_mode(module, inner=False)


def _owner(network: nn.Module, name: str) -> nn.Module:
    return network.get_submodule(name.rpartition(".")[0])


def _in_slot(owner: nn.Module, own: str) -> Tensor | None:
    return owner._parameters.get(own, owner._buffers.get(own))


def _places(tensors: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    return [(tensor.data_ptr(), tensor._version) for tensor in tensors.values()]
