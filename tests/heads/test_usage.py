"""What networks make of their heads, and whether a linear layer can be fitted to that."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from lit_finetune.heads.replace import DropoutConv2d, DropoutLinear
from lit_finetune.heads.usage import HeadUse, find_head_use, linear_head
from lit_finetune.probe.features import HeadFeatures, collect_features
from lit_finetune.probe.head import fit_head, set_head

POOL = (nn.AdaptiveAvgPool2d(1), nn.Flatten())


def network(*end: nn.Module) -> nn.Sequential:
    """Eight channels at 4 x 4 places, some of them below 0, and then an end whose head is `1.0`."""
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8))
    return nn.Sequential(body, nn.Sequential(*end)).eval()


class Tokens(nn.Module):
    """A head on each place for itself, of which the mean is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).movedim(1, -1)).mean(dim=(1, 2))


class Reuses(nn.Module):
    """It works in place on pictures, and on what the head was given, when that is done."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images.mul_(2).add_(1)).mean(dim=(2, 3))
        logits = self.head(features)
        features.zero_()
        return logits


class Residual(nn.Module):
    """It adds something of the picture to what the head gives, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = images.mean(dim=(2, 3))
        logits = self.head(features)
        logits += 0.1 * features
        return logits


class Rest(nn.Module):
    """A last step."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self.step = step

    def forward(self, logits: Tensor) -> Tensor:
        steps = {
            "softmax": lambda: logits.softmax(dim=1),
            "log_softmax": lambda: logits.log_softmax(dim=1),
            "scaled": lambda: 10 * logits,
            "scaled a little": lambda: 1.01 * logits,
            "scaled in place": lambda: logits.mul_(10),
            "clamped in place": lambda: logits.clamp_(max=1),
            "soft cap": lambda: logits.div_(4).tanh_().mul_(4),
        }
        return steps[self.step]()


def hook_weight_norm(layer: nn.Module) -> nn.Module:
    """As older networks have it: a hook computes the weight before each forward."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


PLAIN = HeadUse()
MEAN = HeadUse(pools=True)
RECTIFIED = HeadUse(pools=True, applies_relu=True)
CASES = [
    (nn.Sequential(network(*POOL), nn.Linear(8, 3)), "1", PLAIN),
    (nn.Sequential(network(*POOL), DropoutLinear(8, 3, drop_rate=0.5)), "1", PLAIN),
    (nn.Sequential(network(POOL[0]), nn.Conv2d(8, 3, 1), nn.Flatten()), "1", PLAIN),
    (network(nn.Conv2d(8, 3, 1), *POOL), "1.0", MEAN),
    (network(DropoutConv2d(8, 3, 1, drop_rate=0.5), *POOL), "1.0", MEAN),
    (Tokens(), "head", MEAN),
    (network(nn.Conv2d(8, 3, 1), nn.ReLU(inplace=True), *POOL), "1.0", RECTIFIED),
    (Reuses(), "head", PLAIN),
    (network(nn.Conv2d(8, 3, 1), nn.ReLU(), *POOL), "1.0", RECTIFIED),
]


def pictures(num: int = 24) -> tuple[Tensor, Tensor]:
    return torch.randn(num, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(
        num
    ) % 3


@pytest.mark.parametrize(("net", "head_name", "expected"), CASES)
@pytest.mark.parametrize("is_zero", [False, True])
def test_what_is_made_of_a_head_is_found_whatever_its_weights(
    net: nn.Module, head_name: str, expected: HeadUse, is_zero: bool
) -> None:
    net.eval()
    head = linear_head(net, head_name)
    nn.init.normal_(head.weight, std=0.0 if is_zero else 0.1)

    assert find_head_use(net, head_name, pictures(2)[0]) == expected


@pytest.mark.parametrize(("net", "head_name", "expected"), CASES)
def test_the_network_gives_the_logits_of_the_fit(
    net: nn.Module, head_name: str, expected: HeadUse
) -> None:
    net.eval()
    images, labels = pictures()
    features = HeadFeatures(net, head_name)
    batches = zip(images.clone().split(5), labels.split(5), strict=True)

    train = collect_features(features, batches)
    fit = fit_head(
        train, None, applies_relu=expected.applies_relu, device=torch.device("cpu"), l2=0.01
    )
    set_head(linear_head(net, head_name), fit.weight, fit.bias)

    with torch.no_grad():
        logits = net(images.clone())
    torch.testing.assert_close(logits.double(), fit.logits(train[0][:, :8]), rtol=1e-4, atol=1e-4)
    assert fit.accuracy == float((logits.argmax(dim=1) == labels).double().mean())


def test_no_relu_clips_after_the_fit_and_no_probability_is_changed_for_it() -> None:
    net, head_name, _ = CASES[-1]
    images, labels = pictures()
    train = collect_features(HeadFeatures(net, head_name), [(images, labels)])
    lowest: list[Tensor] = []

    plain = fit_head(
        (train[0][:, :8], labels), None, applies_relu=False, device=torch.device("cpu"), l2=0.01
    )
    fit = fit_head(train, None, applies_relu=True, device=torch.device("cpu"), l2=0.01)
    set_head(linear_head(net, head_name), fit.weight, fit.bias)
    linear_head(net, head_name).register_forward_hook(lambda *args: lowest.append(args[2].min()))

    with torch.no_grad():
        probabilities = net(images).softmax(dim=1)
    assert lowest[0] >= 0
    expected = plain.logits(train[0][:, :8]).softmax(dim=1)
    torch.testing.assert_close(probabilities.double(), expected, rtol=1e-4, atol=1e-5)


class Cosine(nn.Linear):
    """A layer that only looks like a linear one."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.normalize(input), self.weight, self.bias)


@pytest.mark.parametrize(
    ("end", "head_name", "message"),
    [
        ([*POOL, nn.Sequential(nn.Linear(8, 4), nn.GELU(), nn.Linear(4, 3))], "1.2", "Sequential"),
        ([*POOL, nn.Linear(8, 3, bias=False)], "1.2", "has no bias"),
        ([nn.Conv2d(8, 3, 3), *POOL], "1.0", "sees more than one position"),
        ([*POOL, nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))], "1.2", "are computed"),
        ([*POOL, Cosine(8, 3)], "1.2", "is not a linear function of its input"),
        *(
            ([*POOL, nn.Linear(8, 3), Rest(step)], "1.2", "neither the output of the head")
            for step in (
                "softmax",
                "log_softmax",
                "scaled",
                "scaled a little",
                "scaled in place",
                "clamped in place",
                "soft cap",
            )
        ),
        ([*POOL, hook_weight_norm(nn.Linear(8, 3))], "1.2", "are computed"),
        (
            [*POOL, nn.Linear(8, 3), nn.Hardtanh(inplace=True)],
            "1.2",
            "neither the output of the head",
        ),
        (
            [nn.Conv2d(8, 3, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten()],
            "1.0",
            "neither the output of",
        ),
    ],
)
def test_what_no_linear_layer_can_be_fitted_to_is_refused_with_what_to_do(
    end: list[nn.Module], head_name: str, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"{message}(.|\n)*epochs of its own"):
        find_head_use(network(*end), head_name, pictures(2)[0])


def test_what_is_added_to_the_logits_in_place_is_noticed() -> None:
    with pytest.raises(ValueError, match="neither the output of the head"):
        find_head_use(Residual().eval(), "head", pictures(2)[0])


def test_a_head_that_is_used_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.head(images.mean(dim=(2, 3))))

    with pytest.raises(ValueError, match="is used 2 times"):
        find_head_use(Twice(), "head", pictures(2)[0])


def test_a_relu_behind_the_head_is_refused_in_half_precision() -> None:
    net = CASES[-1][0]

    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="too coarse"):
        find_head_use(net, "1.0", pictures(2)[0])


def test_classes_that_are_fitted_one_by_one_are_refused_behind_a_relu() -> None:
    features, labels = torch.rand(6, 12), torch.eye(3).repeat(2, 1)

    with pytest.raises(ValueError, match="no logit is below 0"):
        fit_head((features, labels), None, applies_relu=True, device=torch.device("cpu"))
