"""Notice layers that are exchanged while a network trains, by a look at each before a step."""

from collections.abc import Collection, Mapping

from torch import nn

from lit_finetune._errors import some_of
from lit_finetune.modules.fsdp1 import unpruned_name

_PRUNED = "_orig"


class LayerWatch:
    """The modules of a network and their parameters, noted to be compared.

    It is compared by identity alone: less than a millisecond for a ResNet-50.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> watch = LayerWatch(network)
    >>> before = watch.is_same()
    >>> network[1] = nn.Linear(2, 2)
    >>> before, watch.is_same()
    (True, False)

    Args:
        network: It trains.
        modules_only: Whether parameters may be exchanged, since the strategy does so itself.
    """

    def __init__(self, network: nn.Module, *, modules_only: bool = False) -> None:
        modules = list(network.modules())
        self._children = [(each._modules, dict(each._modules)) for each in modules]
        own = [] if modules_only else [each._parameters for each in modules if each._parameters]
        self._parameters = [(now, dict(now)) for now in own]
        self._empty = [] if modules_only else [m._parameters for m in modules if not m._parameters]

    def is_same(self) -> bool:
        """Whether all of it is in its place; masks that prune a parameter leave it there."""
        return (
            all(_is_same(now, noted) for now, noted in self._children)
            and all(_is_same(n, noted) or _is_pruned(n, noted) for n, noted in self._parameters)
            and not any(self._empty)
        )


def refuse_exchanged_amid(
    planned: Mapping[str, nn.Parameter],
    now: Mapping[str, nn.Parameter],
    *,
    beside: tuple[str, ...] = (),
    when: str,
) -> None:
    """Refuse parameters that came, went or were exchanged while the network trained.

    What joins without a gradient, such as a copy of the network to learn from, is let be.

    Args:
        planned: The parameters that the schedule is about, by name.
        now: The module's parameters.
        beside: The names of networks that the schedule leaves as they are.
        when: At which point of the training it was seen.

    Raises:
        ValueError: Names them, and says where layers may be built.
    """
    starts = tuple(f"{name}." for name in beside)
    here, known = (
        {unpruned_name(n): each for n, each in named.items() if not n.startswith(starts)}
        for named in (now, planned)
    )
    gone = [name for name, parameter in known.items() if here.get(name) is not parameter]
    new = [name for name, each in here.items() if name not in known and each.requires_grad]
    if other := [*gone, *new]:
        raise ValueError(
            f"Layers were exchanged or added amid the training, {when}: {some_of(other, 3)}. No"
            " optimizer and no schedule knows them, so they would never train. Build layers in"
            " `__init__`, `setup` or `configure_model`, and let the schedule say when they train;"
            " new weights for a layer are copied into it, under `torch.no_grad()`."
        )


def refuse_unoptimised(
    known: Mapping[str, nn.Parameter],
    now: Mapping[str, nn.Parameter],
    *,
    optimised: Collection[int],
    when: str,
) -> None:
    """Refuse parameters that came amid a training without a schedule, if no optimizer moves them.

    Args:
        known: The module's parameters when it began.
        now: Its parameters.
        optimised: The `id` of each parameter that an optimizer holds.
        when: At which point of the training it was seen.

    Raises:
        ValueError: Names them, and says what to do.
    """
    before = set(map(id, known.values()))
    new = [
        name
        for name, each in now.items()
        if each.requires_grad and id(each) not in before and id(each) not in optimised
    ]
    if new:
        raise ValueError(
            f"Layers were exchanged or added amid the training, {when}: {some_of(new, 3)}. No"
            " optimizer holds them, so they would never train. Build layers in `__init__`, `setup`"
            " or `configure_model`, or add them to the optimizer (`add_param_group`); new weights"
            " for a layer are copied into it, under `torch.no_grad()`."
        )


def _is_same(now: Mapping[str, object], noted: Mapping[str, object]) -> bool:
    if len(now) != len(noted):
        return False
    return all(now.get(name) is each for name, each in noted.items())


def _is_pruned(now: Mapping[str, object], noted: Mapping[str, object]) -> bool:
    """Whether masks of `torch.nn.utils.prune` were put on, or taken off: the numbers stay."""
    plain = {name.removesuffix(_PRUNED): each for name, each in noted.items()}
    return _is_same({name.removesuffix(_PRUNED): each for name, each in now.items()}, plain)
