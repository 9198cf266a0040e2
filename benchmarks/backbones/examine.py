"""What works on one backbone: each check by itself; all but splits on tensors without data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from benchmarks.backbones.exact import split_problems
from benchmarks.backbones.sources import Source
from lit_finetune.backbones.backbone import Backbone
from lit_finetune.backbones.create import create_backbone
from lit_finetune.blocks.block import Block, list_blocks
from lit_finetune.blocks.forward_order import ParameterUseMode
from lit_finetune.build import Assembled, assemble
from lit_finetune.heads.find import (
    all_heads,
    first_layer,
    layer_sizes,
    partner_heads,
    replaced_layers,
)
from lit_finetune.heads.replace import head_num_classes
from lit_finetune.modules.outputs import logits_of, weighted_auxiliary_logits

Built = TypeVar("Built")

NUM_CLASSES = 7
FILLING = {"normal_", "uniform_", "trunc_normal_", "zero_", "fill_", "erfinv_", "clamp_"}
FILLING |= {"mul_", "add_", "div_"}
CHECKS = (
    "built",
    "head",
    "num_features",
    "blocks in order",
    "forward and backward",
    "split",
    "same bits",
    "data config",
)


@dataclass
class Finding:
    """What came of the checks of one backbone; an empty text is right, None was not examined."""

    name: str
    family: str
    problems: dict[str, str | None] = field(default_factory=dict)
    num_heads: int = 1
    num_blocks: int = 0
    notes: list[str] = field(default_factory=list)
    cannot_be_built: str = ""
    """Why the library itself cannot build it."""

    @property
    def works(self) -> bool:
        """Whether nothing is wrong."""
        return not self.cannot_be_built and not any(self.problems.values())


def examine(source: Source, name: str, *, splits: bool = True) -> Finding:
    """Build a backbone for seven classes, and put every check to it.

    Args:
        source: The library that has it.
        name: What the library calls it.
        splits: Whether to run it in halves, too, for which it needs real tensors.
    """
    finding = Finding(name, source.family_of(name))
    try:
        backbone = without_data(lambda: create_backbone(f"{source.prefix}{name}"))
        library = _library(source, backbone, name)
        built = _assembled(source, backbone, name)
    except Exception as error:
        finding.problems["built"] = _told(error)
        finding.cannot_be_built = _why_not(source, name)
        return finding
    finding.problems["built"] = ""
    case = _Case(built, library, finding)
    if built.features:
        finding.notes.append("a head is appended to an encoder's features")
    for check, function in _FUNCTIONS.items():
        try:
            finding.problems[check] = function(case)
        except Exception as error:
            finding.problems[check] = _told(error)
    finding.problems |= _splits(source, case) if splits else {"split": None, "same bits": None}
    return finding


def _splits(source: Source, case: "_Case") -> dict[str, str | None]:
    name = f"{source.prefix}{case.finding.name}"
    num_parameters = sum(parameter.numel() for parameter in case.network.parameters())
    try:
        return split_problems(lambda: assemble(name, num_classes=NUM_CLASSES), num_parameters)
    except Exception as error:
        return {"same bits": _told(error)}


def _assembled(source: Source, backbone: Backbone, name: str) -> Assembled:
    if not _has_head(backbone):  # it may have to run at its own size
        return without_data(lambda: assemble(f"{source.prefix}{name}", num_classes=NUM_CLASSES))
    with torch.device("meta"):
        built = assemble(backbone.network, num_classes=NUM_CLASSES)
    return replace(built, data_config=backbone.data_config)


def _has_head(backbone: Backbone) -> bool:
    """Whether the library builds it with a classifier."""
    return backbone.has_head and getattr(backbone.network, "num_classes", 1) != 0


def _why_not(source: Source, name: str) -> str:
    """Why the library itself cannot build a network; nothing if it can."""
    try:
        without_data(lambda: source.build(name))
    except Exception as error:
        return _told(error)
    return ""


@dataclass(frozen=True)
class _Library:
    """What the library says of a network, and what it looks like before it is ours."""

    shapes: dict[str, tuple[int, ...]]
    blocks: list[str]
    """The names of the blocks; none if it was built without a head."""
    num_features: int | None
    data_config: dict[str, Any]


def _library(source: Source, backbone: Backbone, name: str) -> _Library:
    network = backbone.network
    has_head = _has_head(backbone)
    return _Library(
        shapes=_shapes(network),
        blocks=[block.name for block in list_blocks(network)] if has_head else [],
        num_features=source.own_num_features(network),
        data_config=source.own_data_config(network, name),
    )


def without_data(build: Callable[[], Built]) -> Built:
    """Build something whose tensors have no data, for whatever size it would have."""
    try:
        with torch.device("meta"), _WithoutInitialisation():
            return build()
    except NotImplementedError:  # some compute their sizes with tensors, and need those to be real
        with _members_on_meta():
            return build()


class _WithoutInitialisation(TorchFunctionMode):
    """Leaves out what fills tensors: they have no data, and it takes most of the time."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, unless it fills a tensor without data."""
        filled = args[0] if args and getattr(func, "__name__", "") in FILLING else None
        if isinstance(filled, Tensor) and filled.is_meta:
            return filled
        return func(*args, **(kwargs or {}))


@contextmanager
def _members_on_meta() -> Iterator[None]:
    """Modules lose the data of their tensors one by one, while they are built."""
    register, keep = nn.Module.register_parameter, nn.Module.register_buffer

    def parameter_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        here = None if param is None else nn.Parameter(param.to("meta"), param.requires_grad)
        register(self, name, here)

    def buffer_on_meta(self: nn.Module, name: str, tensor: Any, persistent: bool = True) -> None:
        keep(self, name, None if tensor is None else tensor.to("meta"), persistent)

    setattr(nn.Module, "register_parameter", parameter_on_meta)  # noqa: B010
    setattr(nn.Module, "register_buffer", buffer_on_meta)  # noqa: B010
    try:
        yield
    finally:
        setattr(nn.Module, "register_parameter", register)  # noqa: B010
        setattr(nn.Module, "register_buffer", keep)  # noqa: B010


@dataclass
class _Run:
    """What one run of a network in training shows."""

    order: tuple[str, ...]
    """The parameters in the order of their first use."""
    output: Any
    given: dict[int, list[Tensor]]
    """What modules that were asked about were given, by their `id`."""


@dataclass
class _Case:
    built: Assembled
    library: _Library
    finding: Finding

    @property
    def network(self) -> nn.Module:
        return self.built.network

    @cached_property
    def blocks(self) -> list[Block]:
        return list_blocks(self.network, self.built.head_name)

    @cached_property
    def heads(self) -> tuple[str, ...]:
        return partner_heads(self.network, self.built.head_name)

    @cached_property
    def classifiers(self) -> list[nn.Module]:
        return _classifiers(self.network)

    def images(self) -> Tensor:
        config = self.built.data_config
        return torch.zeros(2, len(config.mean), *config.image_size, device="meta")

    @cached_property
    def run(self) -> _Run:
        given: dict[int, list[Tensor]] = {}
        outputs: list[Any] = []

        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            given.setdefault(id(module), []).append(args[0])

        asked = {id(m): m for m in map(self.network.get_submodule, self.heads)}
        asked.update((id(m), m) for m in self.classifiers)
        handles = [module.register_forward_pre_hook(note) for module in asked.values()]
        handles.append(self.network.register_forward_hook(lambda m, a, out: outputs.append(out)))
        names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        try:
            with ParameterUseMode(names) as uses:
                self.network.train()(self.images())
        finally:
            for handle in handles:
                handle.remove()
        return _Run(tuple(uses.used_names), outputs[-1], given)


def _head(case: _Case) -> str:
    """All heads give as many scores as there are classes, and nothing else is of another shape."""
    network, head_name, heads = case.network, case.built.head_name, case.heads
    case.finding.num_heads = len(heads)
    if len(heads) > 1:
        case.finding.notes.append(f"{len(heads)} heads together")
    auxiliary = [head for head in all_heads(network, head_name) if head not in heads]
    if auxiliary:
        case.finding.notes.append(f"auxiliary heads: {', '.join(auxiliary)}")
    replaced = replaced_layers(network, head_name)
    wrong = [head for head in replaced if head_num_classes(network, head) != NUM_CLASSES]
    if wrong:
        return f"another number of classes in {', '.join(wrong)}"
    outputs = [case.run.output]
    if auxiliary or len(heads) > 1:  # in evaluation such a network may give something else
        with torch.no_grad():
            outputs.append(network.eval()(case.images()))
    given = [tuple(logits_of(output).shape) for output in outputs]
    if set(given) != {(2, NUM_CLASSES)}:
        return f"logits of shape {given}"
    inside = tuple(f"{head}." for head in replaced)
    shapes = _shapes(network)
    if case.built.features:
        shapes = {name.removeprefix("features."): shape for name, shape in shapes.items()}
    differences = sorted(case.library.shapes.items() ^ shapes.items())
    changed = [name for name, _ in differences if not name.startswith(inside)]
    return f"changed beside the head: {changed[0]}" if changed else ""


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _num_features(case: _Case) -> str:
    """As many features reach the heads as their layers take, and the library's classifier."""
    widths: dict[int, int] = {}  # of features that are the same tensor once
    for name in case.heads:
        head = case.network.get_submodule(name)
        layer = first_layer(head)
        given = {id(f): _width(f, head) for f in case.run.given.get(id(head), [])}
        if layer is None or [*given.values()] != [layer_sizes(layer)[0]]:
            found, takes = [*given.values()], layer and layer_sizes(layer)[0]
            return f"`{name}` gets {found} features and takes {takes}"
        widths |= given
    own = case.library.num_features
    if own is None or _agree(own, widths):
        return ""
    wider = {
        id(features): _width(features, module)
        for module in case.classifiers
        for features in case.run.given.get(id(module), [])
    }
    if not _agree(own, wider):
        return f"{own} by the library, {[*(wider or widths).values()]} when run"
    case.finding.notes.append("a classifier of several layers, whose last is the head")
    return ""


def _agree(own: int, widths: dict[int, int]) -> bool:
    """Whether so many features go into each of several heads, or into all of them together."""
    return {own} == {*widths.values()} or own == sum(widths.values())


def _classifiers(network: Any) -> list[nn.Module]:
    """The modules that the library calls the classifier, if it does."""
    given = network.get_classifier() if hasattr(network, "get_classifier") else ()
    several = list(given) if isinstance(given, tuple | nn.ModuleList) else [given]
    return [m for one in several for m in (one if isinstance(one, nn.ModuleList) else [one])]


def _width(features: Tensor, module: nn.Module) -> int:
    # A classifier that is a convolution is given a map of features.
    is_map = isinstance(first_layer(module), nn.Conv2d) and features.ndim == 4
    return features.shape[1 if is_map else -1]


def _blocks(case: _Case) -> str:
    """Every parameter is in one block, the head is the last, and they are used in turn."""
    blocks = case.blocks
    case.finding.num_blocks = len(blocks)
    listed = [name for block in blocks for name in block.parameters]
    if sorted(listed) != sorted(name for name, _ in case.network.named_parameters()):
        return "a parameter is in no block, or in two"
    if [block.name for block in blocks].count("head") != 1 or blocks[-1].name != "head":
        return "the head is not the last block"
    place = {name: i for i, name in enumerate(case.run.order)}
    asides = tuple(f"{head}." for head in all_heads(case.network, case.heads[0])[len(case.heads) :])
    used = [
        ([place[n] for n in block.parameters if n in place and not n.startswith(asides)], block)
        for block in blocks
    ]
    begins = [(min(places), block.name) for places, block in used if places]
    late = [one[1] for one, other in pairwise(begins) if one[0] > other[0]]
    if late:
        return f"used after a part of the block behind: {', '.join(late)}"
    bare = case.library.blocks
    is_same = not bare or bare == [block.name for block in blocks]
    return "" if is_same else f"other blocks before it was run: {bare}"


def _forward_backward(case: _Case) -> str:
    """The loss of a training step depends on every parameter that trains."""
    output = case.run.output
    target = torch.zeros(2, dtype=torch.int64, device="meta")
    loss = functional.cross_entropy(logits_of(output), target)
    for weight, logits in weighted_auxiliary_logits(output):
        loss = loss + weight * functional.cross_entropy(logits, target)
    reached = _leaves(loss)
    named = case.network.named_parameters()
    missing = [name for name, p in named if p.requires_grad and id(p) not in reached]
    if any(name.startswith(case.built.head_name) for name in missing):
        return f"no gradient for the head's {missing[0]}"
    if missing:
        case.finding.notes.append(f"without a gradient: {', '.join(missing[:3])}")
    return ""


def _leaves(loss: Tensor) -> set[int]:
    """The `id` of each parameter that a gradient of the loss would reach: no need to compute it."""
    waiting, seen, found = [loss.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(id(getattr(node, "variable", None)))
        waiting += [before for before, _ in node.next_functions]
    return found


def _data_config(case: _Case) -> str | None:
    """The data config is the library's own."""
    own = case.library.data_config
    if not own:  # the library says nothing of it
        return None
    ours = {key: getattr(case.built.data_config, key) for key in own}
    return "" if ours == own else f"{ours}, but the library has {own}"


_FUNCTIONS: dict[str, Callable[[_Case], str | None]] = {
    "head": _head,
    "num_features": _num_features,
    "blocks in order": _blocks,
    "forward and backward": _forward_backward,
    "data config": _data_config,
}


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
