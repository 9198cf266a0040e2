"""Heads of all kinds get their outputs in another order, and compute the same."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_finetune import FinetuneClassifier
from lit_finetune.heads.class_outputs import head_state, reorder_outputs, reset_head
from lit_finetune.modules.outputs import logits_of

ORDER = [2, 0, 3, 1]
Make = Callable[[], FinetuneClassifier]


def of(name: str, size: int, kwargs: dict[str, Any] | None = None, **options: Any) -> Make:
    """A classifier of four classes on a network that a library makes."""
    return lambda: FinetuneClassifier(
        name, num_classes=4, image_size=size, backbone_kwargs=kwargs or {}, **options
    )


class Pixels(nn.Module):
    """A small network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.fc = nn.Linear(4, 4)
        self.data_config = {"image_size": [8, 8], "resize_size": 8}

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x).mean((2, 3)))


class Prototypes(nn.Module):
    """Scores by the distance to a point for each class, on buffers as well as weights."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(4, 4))  # as many features as classes
        self.register_buffer("prior", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.prior - torch.cdist(x, self.points)


def pixels(head: Callable[[], nn.Module]) -> Make:
    return lambda: FinetuneClassifier(Pixels(), num_classes=4, head=lambda *sizes: head())


TINY_VIT = {"depth": 1, "embed_dim": 16, "num_heads": 2}
AUXILIARY = "googlenet, auxiliary heads"
HEADS: dict[str, Make] = {
    "squeezenet, 1x1 convolution": of("squeezenet1_1", 64),
    AUXILIARY: of("googlenet", 64, {"aux_logits": True, "init_weights": False}),
    "mlp": of("timm/test_resnet", 32, head="mlp"),
    "vit": of("timm/vit_tiny_patch16_224", 32, TINY_VIT),
    "deit, distilled": of("timm/deit_tiny_distilled_patch16_224", 32, TINY_VIT),
    "lora": of("timm/vit_tiny_patch16_224", 32, TINY_VIT, lora={"r": 2}),
    "a norm behind the layer": pixels(lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))),
    "batch norm behind the layer": pixels(
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    ),
    "as many features as classes": pixels(lambda: nn.Linear(4, 4)),
    "hidden as many as classes": pixels(
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    ),
    "of its own": pixels(Prototypes),
}


@cache
def built(make: Make) -> FinetuneClassifier:
    """A new classifier, made once for all tests: they take copies."""
    torch.manual_seed(0)
    return make().eval()


def warmed(make: Make) -> tuple[FinetuneClassifier, Tensor]:
    """A classifier as after a training: no two numbers of its head are the same; and pictures."""
    torch.manual_seed(0)
    model = copy.deepcopy(built(make))
    with torch.no_grad():
        for name in head_state(model.backbone, model.head_name):
            value = model.backbone.state_dict(keep_vars=True)[name]
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.1)
    return model, torch.randn(3, 3, *model.data_config.image_size)


every_head = pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=name) for name, make in HEADS.items()],
)


@every_head
def test_outputs_in_another_order_are_the_same_outputs(make: Make) -> None:
    model, images = warmed(make)
    before = copy.deepcopy(model)
    heads = set(head_state(model.backbone, model.head_name))
    with torch.no_grad():
        wanted = before(images)[:, ORDER]

        reorder_outputs(model.backbone, model.head_name, ORDER, data_config=model.data_config)

        torch.testing.assert_close(model(images), wanted, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(images), before(images), rtol=1e-3)
    rest = before.backbone.state_dict()
    for name, value in model.backbone.state_dict().items():
        assert name in heads or torch.equal(value, rest[name]), name


def test_auxiliary_heads_are_put_in_order_as_well() -> None:
    model, images = warmed(HEADS[AUXILIARY])

    def said() -> list[Tensor]:
        model.backbone.training = True  # it alone: nothing is drawn at random below it
        with torch.no_grad():
            return list(model.backbone(images))

    before = said()
    reorder_outputs(model.backbone, model.head_name, ORDER, data_config=model.data_config)

    assert len(before) == 3
    for old, new in zip(before, said(), strict=True):
        torch.testing.assert_close(new, old[:, ORDER], rtol=1e-4, atol=1e-5)


class Mixed(nn.Module):
    """No class has a row of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.view(4, 4)).sin()


def test_a_head_that_cannot_be_put_in_order_is_refused_and_stays_as_it_was() -> None:
    model, _ = warmed(pixels(Mixed))
    before = copy.deepcopy(model.backbone.state_dict())

    with pytest.raises(ValueError, match=r"head `fc` \(Mixed\).*Give the data the head's order"):
        reorder_outputs(model.backbone, model.head_name, ORDER, data_config=model.data_config)

    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())


@every_head
def test_a_head_begun_anew_is_that_of_the_beginning(make: Make) -> None:
    model, images = warmed(make)
    first = head_state(built(make).backbone, model.head_name)

    reset_head(model.backbone, model.head_name, state=first, seed=0)

    found = head_state(model.backbone, model.head_name)
    assert found.keys() == first.keys()
    assert all(torch.equal(found[name], first[name]) for name in first)
    assert torch.isfinite(logits_of(model.backbone(images))).all()
