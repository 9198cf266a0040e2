"""Replace the classifier of a network, and read its sizes and its input."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_finetune._errors import nearest, one_of
from lit_finetune.heads.find import (
    Layer,
    auxiliary_layers,
    first_layer,
    last_layer,
    layer_sizes,
    partner_heads,
)
from lit_finetune.heads.find import find_head as find_head

Head = str | nn.Module | Callable[[int, int], nn.Module]
"""`linear`, `mlp`, a module, or a function of `(in_features, num_classes)` that makes one."""

MAX_HIDDEN_FEATURES = 512
INIT_STD = 0.01
"""The standard deviation of a last layer's initial weights."""


class DropoutLinear(nn.Linear):
    """A linear layer with dropout on its input, and the parameter names of `nn.Linear`."""

    def __init__(self, in_features: int, out_features: int, *, drop_rate: float) -> None:
        super().__init__(in_features, out_features)
        self.drop_rate = drop_rate

    def forward(self, input: Tensor) -> Tensor:
        """The logits."""
        return super().forward(functional.dropout(input, self.drop_rate, self.training))


class DropoutConv2d(nn.Conv2d):
    """A convolution with dropout on its input, and the parameter names of `nn.Conv2d`."""

    def __init__(self, *args: Any, drop_rate: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drop_rate = drop_rate

    def forward(self, input: Tensor) -> Tensor:
        """The logits at each position."""
        return super().forward(functional.dropout(input, self.drop_rate, self.training))


def replace_head(
    network: nn.Module,
    num_classes: int,
    *,
    head: Head = "linear",
    head_name: str | None = None,
    drop_rate: float = 0.0,
) -> str:
    """Replace a network's classifier by a new one; return its dotted name.

    The new head has the device and the dtype of the old one. Heads built here start with logits
    near 0. If several heads compute the logits together, as in a distilled DeiT, each is replaced.
    The last layer of auxiliary heads, as GoogLeNet's, is replaced by a layer of the same type.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 1000))
    >>> replace_head(network, 2)
    '1'
    >>> network[1]
    Linear(in_features=4, out_features=2, bias=True)

    Args:
        network: It is changed in place.
        num_classes: The number of classes of the new head.
        head: `linear`: one layer of the old one's type, with a bias; `mlp`: two, with GELU and
            dropout between them and as many hidden features as input features, but at most 512; a
            module, used as it is; or a function that returns one for `(in_features, num_classes)`.
        head_name: The module to replace; by default the one that `find_head` finds. One of several
            heads that work together stands for all.
        drop_rate: Probability of dropping a feature before the last layer of `linear` or `mlp`.

    Raises:
        ValueError: An argument is invalid, no head is found, or `head` does not fit.
    """
    _check_arguments(num_classes, head, drop_rate)
    name = _head_name(network, head_name)
    partners, auxiliary = partner_heads(network, name), auxiliary_layers(network, name)
    if len(partners) > 1 and isinstance(head, nn.Module):
        raise ValueError(
            f"{type(network).__name__} has several heads that work together "
            f"({', '.join(partners)}), so one module as `head` is not enough: give a function of "
            "`(in_features, num_classes)` that makes one for each."
        )
    for path in partners:
        _replace_module(network, path, num_classes, head, drop_rate)
    for path in auxiliary:
        _replace_module(network, path, num_classes, "linear", 0.0)
    return name


def _replace_module(
    network: nn.Module, name: str, num_classes: int, head: Head, drop_rate: float
) -> None:
    old = network.get_submodule(name)
    layer = _input_layer(old, name)
    new = _build(layer, num_classes, head, drop_rate)
    _check_fit(new, layer_sizes(layer)[0], num_classes)
    new = new.to(device=layer.weight.device, dtype=layer.weight.dtype).train(old.training)
    for alias in [n for n, m in network.named_modules(remove_duplicate=False) if m is old]:
        network.set_submodule(alias, new)  # one module may have several names
    _update_num_classes(network, name, num_classes)


def add_classifier(network: nn.Module, num_classes: int) -> bool:
    """Give a timm network that was built without a classifier its own one.

    >>> timm = __import__("timm")
    >>> network = timm.create_model("test_vit", num_classes=0)
    >>> add_classifier(network, 5), network.head
    (True, Linear(in_features=64, out_features=5, bias=True))

    Returns:
        Whether the network was changed.
    """
    build: Any = getattr(network, "reset_classifier", None)
    has_no_classifier = getattr(network, "num_classes", None) == 0 and hasattr(
        network, "pretrained_cfg"
    )
    if has_no_classifier and callable(build):
        build(num_classes)
    return has_no_classifier and callable(build)


def choose_head(
    network: nn.Module,
    head_name: str,
    num_classes: int,
    *,
    make_head: Callable[[int, int], nn.Module | None],
    head: Head,
) -> Head:
    """The head, or the function for several heads, of `make_head`; `head` if it returns None."""
    custom = make_head(head_in_features(network, head_name), num_classes)
    if custom is None:
        return head
    if len(partner_heads(network, head_name)) == 1:
        return custom
    return cast(Head, make_head)  # it is called for each head


def head_in_features(network: nn.Module, head_name: str) -> int:
    """The number of input features of a head."""
    return layer_sizes(_input_layer(network.get_submodule(head_name), head_name))[0]


def head_num_classes(network: nn.Module, head_name: str) -> int:
    """The number of classes of a head: the output features of its last layer."""
    layer = last_layer(network.get_submodule(head_name))
    if layer is None:
        raise ValueError(
            f"`{head_name}` has no `nn.Linear` or `nn.Conv2d`: its classes are unknown."
        )
    return layer_sizes(layer)[1]


def forward_features(network: nn.Module, head_name: str, x: Tensor) -> Tensor:
    """The input of a network's head in the network's forward of `x`.

    The whole network runs in its current mode. A compiled network runs eagerly, since compiled code
    does not call hooks that were added later.
    """
    inputs: list[Tensor] = []

    def save_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs.append(args[0].clone())  # later layers may work in place

    handle = network.get_submodule(head_name).register_forward_pre_hook(save_input)
    try:
        with torch.compiler.set_stance("force_eager"):
            network(x)
    finally:
        handle.remove()
    if not inputs:
        raise ValueError(f"{type(network).__name__} does not call its head `{head_name}`.")
    return inputs[-1]


def _check_arguments(num_classes: int, head: Head, drop_rate: float) -> None:
    if num_classes < 1:
        raise ValueError(f"`num_classes` must be 1 or more, but got {num_classes}.")
    if not 0 <= drop_rate < 1:
        raise ValueError(f"`drop_rate` is a probability below 1, but got {drop_rate}.")
    if isinstance(head, str):
        one_of(head, ("linear", "mlp"), "head")
    elif drop_rate:
        raise ValueError(
            f"`drop_rate` ({drop_rate}) is for the heads 'linear' and 'mlp': "
            "put the dropout into your own head instead."
        )


def _head_name(network: nn.Module, head_name: str | None) -> str:
    if head_name is None:
        head_name = find_head(network)
    elif head_name not in dict(network.named_modules(remove_duplicate=False)):
        modules = [name for name, _ in network.named_modules()]
        hint = nearest(head_name, modules)
        raise ValueError(f"{type(network).__name__} has no module {head_name!r}.{hint}")
    if not head_name:
        raise ValueError("The network consists of its head only. Put it into an `nn.Sequential`.")
    return head_name


def _input_layer(head: nn.Module, name: str) -> Layer:
    """The first layer of a head."""
    layer = first_layer(head)
    if layer is None:
        raise ValueError(
            f"`{name}` is of type {type(head).__name__}, without an `nn.Linear` or `nn.Conv2d`: "
            "its number of input features is unknown. Name another module with `head_name=`."
        )
    return layer


def _build(layer: Layer, num_classes: int, head: Head, drop_rate: float) -> nn.Module:
    """The new head; `layer` is the first layer of the old one."""
    in_features = layer_sizes(layer)[0]
    if head == "linear":
        return _init_small(_layer_like(layer, in_features, num_classes, drop_rate))
    if head == "mlp":
        hidden = min(in_features, MAX_HIDDEN_FEATURES)
        return nn.Sequential(
            _layer_like(layer, in_features, hidden),
            nn.GELU(),
            nn.Dropout(drop_rate),
            _init_small(
                nn.Linear(hidden, num_classes)
                if isinstance(layer, nn.Linear)
                else nn.Conv2d(hidden, num_classes, kernel_size=1)
            ),
        )
    if isinstance(head, nn.Module):
        return head
    assert not isinstance(head, str)
    new_head: Any = head(in_features, num_classes)
    if not isinstance(new_head, nn.Module):
        raise ValueError(f"`head` must return an `nn.Module`, but it returned {new_head!r}.")
    return new_head


def _init_small(layer: Layer) -> Layer:
    """Initialise a last layer for logits near 0, as torchvision does in some networks.

    Larger logits distort the features that train with it (arXiv 2202.10054). If a ReLU follows, as
    in SqueezeNet, they disable a class for long, and accuracy depends on the seed.
    """
    nn.init.normal_(layer.weight, std=INIT_STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _layer_like(layer: Layer, in_features: int, out_features: int, drop_rate: float = 0.0) -> Layer:
    """A layer of the same type, with a bias."""
    if isinstance(layer, nn.Linear):
        if drop_rate:
            return DropoutLinear(in_features, out_features, drop_rate=drop_rate)
        return nn.Linear(in_features, out_features)
    sizes: dict[str, Any] = {
        key: getattr(layer, key) for key in ("kernel_size", "stride", "padding")
    }
    if drop_rate:
        return DropoutConv2d(in_features, out_features, **sizes, drop_rate=drop_rate)
    return nn.Conv2d(in_features, out_features, **sizes)


def _check_fit(head: nn.Module, in_features: int, num_classes: int) -> None:
    """Raise if a head's sizes are known and do not fit the network."""
    first, last = first_layer(head), last_layer(head)
    if not isinstance(head, Layer | nn.Sequential) or not first or not last:
        return
    sizes = layer_sizes(first)[0], layer_sizes(last)[1]
    if sizes != (in_features, num_classes):
        raise ValueError(
            f"`head` takes {sizes[0]} features and gives {sizes[1]} classes, but the network "
            f"gives {in_features} features and there are {num_classes} classes."
        )


def _update_num_classes(network: nn.Module, head_name: str, num_classes: int) -> None:
    """Update the number of classes in the attributes of a head's parents (timm, SqueezeNet, HF)."""
    module = network
    for part in head_name.split("."):
        for attribute in {"num_classes", "num_labels"} & vars(module).keys():
            setattr(module, attribute, num_classes)
        module = module.get_submodule(part)
    config: Any = vars(network).get("config")
    if hasattr(config, "num_labels"):
        config.num_labels = num_classes
