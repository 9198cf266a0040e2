"""Detect layers that are exchanged during training, by comparing them before each step."""

from collections.abc import Collection, Mapping
from operator import eq

from torch import nn

from lit_finetune._errors import some_of
from lit_finetune.modules.fsdp1 import unpruned_name

_PRUNED_SUFFIX = "_orig"


class LayerWatch:
    """The modules of a network and their parameters, to detect changes.

    They are compared by identity only, since this is done before each step.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> watch = LayerWatch(network)
    >>> before = watch.is_unchanged()
    >>> network[1] = nn.Linear(2, 2)
    >>> before, watch.is_unchanged()
    (True, False)

    Args:
        network: A network in training.
        modules_only: Whether to ignore parameters, since the strategy exchanges them itself.
    """

    def __init__(self, network: nn.Module, *, modules_only: bool = False) -> None:
        modules = list(network.modules())
        self._children = [each._modules for each in modules]
        self._saved_children = [dict(each) for each in self._children]
        self._parameters = [] if modules_only else [each._parameters for each in modules]
        self._saved_parameters = [dict(each) for each in self._parameters]
        self._ids = self._parameter_ids()

    def is_unchanged(self) -> bool:
        """Whether all modules and parameters are the same objects; pruning masks are ignored."""
        if not all(map(eq, self._children, self._saved_children)):  # modules equal by identity
            return False
        if self._parameter_ids() == self._ids:
            return True
        pairs = zip(self._parameters, self._saved_parameters, strict=True)
        return all(
            _is_same(current, saved) or _is_pruned(current, saved) for current, saved in pairs
        )

    def _parameter_ids(self) -> list[int]:
        return [id(each) for parameters in self._parameters for each in parameters.values()]


def refuse_exchanged_in_training(
    planned: Mapping[str, nn.Parameter],
    current: Mapping[str, nn.Parameter],
    *,
    auxiliary: tuple[str, ...] = (),
    when: str,
) -> None:
    """Refuse parameters that were added, removed or exchanged during training.

    New parameters without `requires_grad`, such as those of a teacher, are allowed.

    Args:
        planned: The parameters of the schedule, by name.
        current: The module's parameters.
        auxiliary: The names of auxiliary networks.
        when: The point of the training, for the message.

    Raises:
        ValueError: Names the parameters, and says where layers may be built.
    """
    prefixes = tuple(f"{name}." for name in auxiliary)
    present, expected = (
        {unpruned_name(n): each for n, each in named.items() if not n.startswith(prefixes)}
        for named in (current, planned)
    )
    missing = [name for name, parameter in expected.items() if present.get(name) is not parameter]
    new = [name for name, each in present.items() if name not in expected and each.requires_grad]
    if other := [*missing, *new]:
        raise ValueError(
            f"Layers were exchanged or added during training, {when}: {some_of(other, 3)}. No"
            " optimizer and no schedule knows them, so they would never train. Build layers in"
            " `__init__`, `setup` or `configure_model`, and let the schedule say when they train;"
            " new weights for a layer are copied into it, under `torch.no_grad()`."
        )


def refuse_unoptimised(
    expected: Mapping[str, nn.Parameter],
    current: Mapping[str, nn.Parameter],
    *,
    optimised: Collection[int],
    when: str,
) -> None:
    """Refuse parameters that were added during training without a schedule or an optimizer.

    Args:
        expected: The module's parameters at the start of training.
        current: Its parameters now.
        optimised: The `id` of each parameter that an optimizer holds.
        when: The point of the training, for the message.

    Raises:
        ValueError: Names the parameters, and says what to do.
    """
    known_ids = set(map(id, expected.values()))
    new = [
        name
        for name, each in current.items()
        if each.requires_grad and id(each) not in known_ids and id(each) not in optimised
    ]
    if new:
        raise ValueError(
            f"Layers were exchanged or added during training, {when}: {some_of(new, 3)}. No"
            " optimizer holds them, so they would never train. Build layers in `__init__`, `setup`"
            " or `configure_model`, or add them to the optimizer (`add_param_group`); new weights"
            " for a layer are copied into it, under `torch.no_grad()`."
        )


def _is_same(current: Mapping[str, object], saved: Mapping[str, object]) -> bool:
    if len(current) != len(saved):
        return False
    return all(current.get(name) is each for name, each in saved.items())


def _is_pruned(current: Mapping[str, object], saved: Mapping[str, object]) -> bool:
    """Whether only masks of `torch.nn.utils.prune` were added or removed."""
    unpruned = {name.removesuffix(_PRUNED_SUFFIX): each for name, each in saved.items()}
    return _is_same(
        {name.removesuffix(_PRUNED_SUFFIX): each for name, each in current.items()}, unpruned
    )
