"""Build a network: the backbone, a head for the classes, and the weights of a file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_finetune.backbones.adapted import create_adapted
from lit_finetune.backbones.backbone import Backbone
from lit_finetune.backbones.create import is_weights_file
from lit_finetune.blocks.forward_order import record_parameter_order
from lit_finetune.checkpoints.trusted_hparams import known_backbone
from lit_finetune.classes.head_classes import HeadClasses, unnamed
from lit_finetune.classes.names import listed
from lit_finetune.heads.class_outputs import head_state
from lit_finetune.heads.feature_head import append_head
from lit_finetune.heads.find import NoHeadError, partner_heads, replaced_layers
from lit_finetune.heads.replace import (
    add_classifier,
    choose_head,
    find_head,
    head_num_classes,
    replace_head,
)
from lit_finetune.heads.untrained import NewHead, new_head
from lit_finetune.images.data_config import DataConfig
from lit_finetune.lora import Lora, add_lora
from lit_finetune.modules.dry_run import init_lazy_layers, num_channels
from lit_finetune.training.random_backbone import RandomLayers, random_backbone, unfilled_layers
from lit_finetune.weights.load import load_weights
from lit_finetune.weights.own_checkpoint import read_own
from lit_finetune.weights.report import LoadReport

Head = str | nn.Module | Callable[[int, int], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """A network ready to be fine-tuned, and how it was built."""

    network: nn.Module
    name: str
    """The name of the backbone."""
    num_classes: int
    head_name: str
    keeps_head: bool
    """Whether the network's own head was kept, since it has the right number of outputs."""
    data_config: DataConfig
    load_report: LoadReport | None
    """The report on the weights file; None without a file."""
    lora_layers: tuple[str, ...] = ()
    """The layers that have adapters."""
    features: str = ""
    """The features that a head was appended to, in words; empty if the network had a head."""
    head_is_loaded: bool
    """Whether the head was loaded from a weights file."""
    head_classes: HeadClasses
    """The classes of the head's outputs."""
    initial_head: Mapping[str, Tensor] | None = None
    """The state of the head before one of our checkpoints was loaded, by the network's names."""
    dropped_classes: tuple[str, ...] = ()
    """The classes of one of our checkpoints whose head did not fit."""
    rebuild_args: dict[str, Any] = field(default_factory=dict)
    """`backbone` and `backbone_kwargs` that build the same network without the user's files."""

    new_head: NewHead | None = None
    """The head, if it is untrained."""
    random_backbone: RandomLayers | None = None
    """The layers of the backbone with random weights, which no file has filled."""

    def __str__(self) -> str:
        """A report on the weights file and the head."""
        report, head = self.load_report, "a new head"
        if self.head_is_loaded:
            head = "the file's head"
        elif self.keeps_head:
            head = "the network's own head"
        line = f"{self.name}: {head}, `{self.head_name}`, for {self.num_classes} classes"
        line += f", on its {self.features}." if self.features else "."
        if self.dropped_classes:
            line += f" The head of the file is for {listed(self.dropped_classes)}."
        if self.lora_layers:
            line += f" {len(self.lora_layers)} layers have adapters, and the rest stays frozen."
        return f"{report}\n{line}" if report else line


def assemble(  # noqa: PLR0913 (they are the classifier's arguments)
    backbone: str | nn.Module | Callable[..., nn.Module],
    *,
    num_classes: int,
    weights: str | None = None,
    head: Head = "linear",
    make_head: Callable[[int, int], nn.Module | None] = lambda in_features, num_classes: None,
    head_name: str | None = None,
    backbone_kwargs: dict[str, Any] | None = None,
    drop_rate: float = 0.0,
    min_match: float = 0.9,
    in_chans: int | None = None,
    image_size: int | None = None,
    lora: Lora | None = None,
) -> Assembled:
    """Build a backbone or use the given one, add a head, and load a weights file if there is one.

    The arguments are those of `FinetuneClassifier`, and its method `make_head`. The head is added
    first, so that it is loaded from a file with as many classes; with another number of classes the
    new head stays as it is, and the report says so.
    """
    file = weights if weights is not None and is_weights_file(weights) else None
    built = create_adapted(
        backbone,
        weights=None if file else weights,
        backbone_kwargs=backbone_kwargs,
        in_chans=in_chans,
        image_size=image_size,
    )
    init_lazy_layers(built.network, built.data_config)
    network, head_name, features, keeps, has_custom_head = _attach_head(
        built,
        num_classes,
        head=head,
        make_head=make_head,
        head_name=head_name,
        drop_rate=drop_rate,
    )
    record_parameter_order(network, _blank_images(network, built.data_config))
    random = None
    if file or not weights:
        random = random_backbone(
            network, head_name, backbone=backbone, name=built.name, kwargs=backbone_kwargs
        )
    path = file or built.weights_file
    initial_head = head_state(network, head_name) if file and not keeps else None
    report = load_weights(network, path, min_match=min_match, head_name=head_name) if path else None
    saved_classes, untrained = read_own(file) if file else (None, None)
    if random and report:
        random = unfilled_layers(network, head_name, filled=report.matched, name=built.name)
    head_is_loaded = _head_is_loaded(report, network, head_name)
    classes = _head_classes(
        built,
        file,
        saved_classes,
        num_classes=num_classes,
        keeps=keeps,
        head_is_loaded=head_is_loaded,
    )
    layers: tuple[str, ...] = ()
    if lora:
        layers = add_lora(network, lora, head_name=head_name, data_config=built.data_config)
    return Assembled(
        network=network,
        name=built.name,
        num_classes=num_classes,
        head_name=head_name,
        keeps_head=keeps,
        random_backbone=random,
        new_head=_new_head(
            network,
            head_name,
            report,
            untrained=untrained,
            is_built=not keeps,
            is_random=_is_random_head(backbone, weights, file) if keeps else not has_custom_head,
        ),
        data_config=built.data_config,
        load_report=report,
        lora_layers=layers,
        features=features,
        head_is_loaded=head_is_loaded,
        head_classes=classes,
        dropped_classes=() if head_is_loaded else tuple(saved_classes or ()),
        initial_head=initial_head if classes.origin == "weights" else None,
        rebuild_args=_rebuild_args(built),
    )


class _Attached(NamedTuple):
    """A network with a head for the classes."""

    network: nn.Module
    head_name: str
    features: str
    """The features that a head was appended to, in words; empty if the network had a head."""
    keeps_head: bool
    has_custom_head: bool
    """Whether the head is the user's module or made by a user's function."""


def _attach_head(
    built: Backbone,
    num_classes: int,
    *,
    head: Head,
    make_head: Callable[[int, int], nn.Module | None],
    head_name: str | None,
    drop_rate: float,
) -> _Attached:
    """Keep, replace or append the head of a network, so that it has an output for each class."""
    was_headless = head_name is None and add_classifier(built.network, num_classes)
    network, head_name, features = _ensure_head(built, head_name)
    names = replaced_layers(network, head_name)
    head = choose_head(network, head_name, num_classes, make_head=make_head, head=head)
    sizes_match = all(head_num_classes(network, name) == num_classes for name in names)
    keeps = head == "linear" and sizes_match and not was_headless and not features
    if not keeps or drop_rate:
        states = {name: network.get_submodule(name).state_dict() for name in names}
        head_name = replace_head(
            network, num_classes, head=head, head_name=head_name, drop_rate=drop_rate
        )
        for name, state in states.items() if keeps else ():
            # A new layer has a bias: 0 for a head without one.
            state.setdefault("bias", torch.zeros(num_classes))
            network.get_submodule(name).load_state_dict(state)
    return _Attached(network, head_name, features, keeps, not isinstance(head, str))


def _head_is_loaded(report: LoadReport | None, network: nn.Module, head_name: str) -> bool:
    """Whether a weights file filled a head or one of its partners."""
    prefixes = tuple(f"{name}." for name in partner_heads(network, head_name))
    return report is not None and any(name.startswith(prefixes) for name in report.matched)


def _head_classes(
    built: Backbone,
    file: str | None,
    saved_classes: list[str] | None,
    *,
    num_classes: int,
    keeps: bool,
    head_is_loaded: bool,
) -> HeadClasses:
    """The classes of the head's outputs, from the weights file or the pretrained network."""
    if file and head_is_loaded:
        if saved_classes and len(saved_classes) != num_classes:
            raise ValueError(
                f"{file} names {listed(saved_classes)} for {num_classes} outputs of its head."
            )
        return (
            HeadClasses(tuple(saved_classes), "weights", file)
            if saved_classes
            else unnamed(num_classes)
        )
    is_trained = head_is_loaded if built.weights_file else True
    if keeps and built.classes and is_trained:
        return HeadClasses(built.classes, "network", f"the head of {built.name}")
    return unnamed(num_classes)


def _new_head(
    network: nn.Module,
    head_name: str,
    report: LoadReport | None,
    *,
    untrained: str | None,
    is_built: bool,
    is_random: bool,
) -> NewHead | None:
    """The head, if it is new or random, and no file has filled it with trained weights."""
    head_is_loaded = report and any(name.startswith(f"{head_name}.") for name in report.matched)
    if head_is_loaded and untrained:  # a checkpoint of ours, from before its first step
        return new_head(network, head_name, is_random=untrained == "random")
    if head_is_loaded or not (is_built or is_random):
        return None
    return new_head(network, head_name, is_random=is_random)


def _is_random_head(backbone: object, weights: str | None, file: str | None) -> bool:
    """Whether a network's own head is random: built by a library without weights."""
    return isinstance(backbone, str) and known_backbone(backbone) and weights == file


def _ensure_head(built: Backbone, head_name: str | None) -> tuple[nn.Module, str, str]:
    """The network with a head, the head's name, and the features that a head was appended to."""
    if head_name:
        return built.network, head_name, ""
    if built.has_head and head_name is None:
        try:
            return built.network, find_head(built.network), ""
        except NoHeadError:
            pass
    network, features = append_head(built.network, built.data_config)
    return network, "head", features


def _blank_images(network: nn.Module, config: DataConfig) -> Tensor:
    """Two images on the meta device."""
    return torch.zeros(2, num_channels(network, config), *config.image_size, device="meta")


def _rebuild_args(built: Backbone) -> dict[str, Any]:
    if built.rebuild_args is None:
        return {}
    return dict(zip(("backbone", "backbone_kwargs"), built.rebuild_args, strict=True))
