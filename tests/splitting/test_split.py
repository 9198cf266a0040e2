import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from lit_finetune import FinetuneClassifier
from lit_finetune.blocks.block import list_blocks
from lit_finetune.modules.outputs import logits_of
from lit_finetune.splitting.check import check_split, splits
from lit_finetune.splitting.split import SplitError, forward_between, forward_from, forward_prefix


class Net(nn.Module):
    """Three layers, between which a test does what it wants."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6)
        self.two = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
        self.three = nn.Sequential(nn.Dropout(0.3), nn.Linear(6, 6))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.three(F.relu(self.two(self.one(x)))))


class LongSkip(Net):
    def forward(self, x: Tensor) -> Tensor:
        first = self.one(x)
        return self.fc(self.three(self.two(first)) + first)


class ShortSkip(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = x + self.two(x)
        return self.fc(torch.cat([x, self.three(x)]).unflatten(0, (2, -1)).mean(0))


class FunctionalDropout(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.three(F.dropout(self.two(self.one(x)), 0.5, self.training)))


class Noise(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.three(self.two(self.one(x)) + torch.randn(6)))


class OtherInTraining(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x))
        return self.fc(self.three(x * 2 if self.training else x))


class LooksAtValues(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x))
        return self.fc(self.three(x if x.sum() > 0 else -x))


class Keeping(nn.Linear):
    kept: Tensor

    def forward(self, input: Tensor) -> Tensor:
        self.kept = super().forward(input)
        return self.kept


class PutBy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.one = Keeping(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.three(self.two(self.one(x))) + self.one.kept)


class EarlyToken(Net):
    """A parameter of a late block is used early."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x) + self.fc.bias.sum()
        return self.fc(self.three(self.two(x)))


class IntoAnother(Net):
    def forward(self, x: Tensor) -> Tensor:
        room = torch.zeros(len(x), 6)
        room[:, :] = self.two(self.one(x))
        return self.fc(self.three(room))


class Positions(Net):
    """What does not come of the picture may cross, and what a module is given by keyword."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        places = torch.arange(x.shape[1], device=x.device) / x.shape[1]
        return self.fc(self.three(self.two(input=x) + places) * places)


class Branches(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.one(x) + self.three(self.two(x)))


def at(net: nn.Module, upto: str, training: bool) -> nn.Module:
    """Let what is before a block rest, and what is behind it train or not."""
    net.train(training)
    for block in list_blocks(net):
        if block.name == upto:
            break
        for path in block.modules:
            net.get_submodule(path).eval()
    return net


CHAINS = {
    "own": (Net, (4, 6)),
    "skips": (ShortSkip, (4, 6)),
    "positions": (Positions, (4, 6)),
    "squeezenet": (lambda: models.squeezenet1_1(num_classes=3), (2, 3, 32, 32)),
    "densenet": (lambda: models.DenseNet(8, (2, 2), 8, num_classes=3), (2, 3, 32, 32)),
    "vit": (
        lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, dropout=0.1, num_classes=3),
        (2, 3, 32, 32),
    ),
    "swin": (
        lambda: models.SwinTransformer([2, 2], 8, [1, 1], [1, 1], [4, 4], num_classes=3),
        (2, 3, 32, 32),
    ),
    "vgg": (
        lambda: nn.Sequential(models.vgg.make_layers([4, "M", 8], True), nn.Flatten(), *VGG_END),
        (2, 3, 8, 8),
    ),
}
VGG_END = (nn.Linear(128, 9), nn.ReLU(True), nn.Dropout(), nn.Linear(9, 3))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_the_two_halves_are_the_whole_to_the_last_bit(name: str, training: bool) -> None:
    make, shape = CHAINS[name]
    net, x = make(), torch.randn(shape)
    names = [block.name for block in list_blocks(net)]
    for upto in names if name not in ("skips", "positions") else names[1:]:
        at(net, upto, training)
        whole = run(net, lambda: logits_of(net(x)))
        with torch.no_grad():
            h = forward_prefix(net, x, upto)

        halves = run(net, lambda h=h, upto=upto: forward_from(net, h, upto))

        behind = [p for b in list_blocks(net)[names.index(upto) :] for p in b.parameters]
        assert torch.equal(whole[0], halves[0]), upto
        assert all(torch.equal(whole[1][key], halves[1][key]) for key in behind), upto


def run(net: nn.Module, forward) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits and all gradients, from one seed and with the same statistics."""
    buffers = [buffer.clone() for buffer in net.buffers()]
    torch.manual_seed(1)
    net.zero_grad()
    logits = forward()
    logits.square().sum().backward()
    for buffer, value in zip(net.buffers(), buffers, strict=True):
        buffer.copy_(value)
    return logits, {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


def test_gradients_go_back_to_what_enters_the_block() -> None:
    net, x = Net().eval(), torch.randn(4, 6)

    forward_from(net, forward_prefix(net, x, "two"), "two").sum().backward()
    halves = net.one.weight.grad
    net.zero_grad()
    net(x).sum().backward()

    assert torch.equal(halves, net.one.weight.grad)


@pytest.mark.parametrize(
    ("make", "upto", "why"),
    [
        (LongSkip, "three", "the output of `one`"),
        (Branches, "two", "the output of `one`"),
        (FunctionalDropout, "three", "at random|differs between training and evaluation"),
        (Noise, "three", "at random"),
        (OtherInTraining, "three", "differs between training and evaluation"),
        (LooksAtValues, "three", "values"),
        (PutBy, "three", "`one.kept` is kept"),
        (EarlyToken, "three", "a parameter of that block or a later one"),
        (IntoAnother, "three", "writes"),
    ],
)
def test_what_cannot_be_split_is_refused_and_says_why(make, upto: str, why: str) -> None:
    net, x = make().eval(), torch.randn(4, 6)
    with torch.no_grad():
        net(x)

    with pytest.raises(SplitError, match=f"{make.__name__} cannot be split at `{upto}`: .*{why}"):
        forward_from(net, forward_prefix(net, x, upto), upto)


def test_a_network_that_was_refused_is_as_it_was() -> None:
    net, x = PutBy().eval(), torch.randn(4, 6)
    net.fc.weight.requires_grad_(False)
    net.two.train()
    kept, whole = net.one(x), net(x)

    with pytest.raises(SplitError):
        forward_prefix(net, x, "three")

    assert torch.equal(net.one.kept, kept)
    assert not net.fc.weight.requires_grad
    assert net.one.weight.requires_grad
    assert net.two[1].training
    assert not net.training
    assert torch.equal(net(x), whole)


def test_a_later_block_follows_from_an_earlier_one() -> None:
    net, x = Net().eval(), torch.randn(4, 6)

    later = forward_between(net, forward_prefix(net, x, "two"), "two", "head")

    assert torch.equal(later, forward_prefix(net, x, "head"))


def test_another_number_of_pictures_needs_no_forward_of_its_own() -> None:
    net, x = models.squeezenet1_1(num_classes=3).eval(), torch.randn(4, 3, 32, 32)
    h = forward_prefix(net, x, "features.6")

    few = forward_from(net, h[:3], "features.6")

    assert torch.equal(few, net(x[:3]))


def test_what_comes_from_elsewhere_needs_the_shape_of_its_pictures() -> None:
    net, x = Net().eval(), torch.randn(4, 6)
    with torch.no_grad():
        h = net.two(net.one(x)).relu()

    with pytest.raises(SplitError, match="image_shape"):
        forward_from(net, h, "three")
    assert torch.equal(forward_from(net, h, "three", image_shape=(6,)), net(x))
    with pytest.raises(SplitError, match=r"\(4, 6\) enters it, but this has the shape \(4, 5\)"):
        forward_from(net, h[:, :5], "three", image_shape=(6,))


def test_what_enters_stays_as_it_is_where_the_network_works_in_place() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)))
    h = forward_prefix(net, torch.randn(2, 4), "head").detach()
    before = h.clone()

    forward_from(net, h, "head")

    assert torch.equal(h, before)


def test_a_new_head_is_seen() -> None:
    net, x = Net().eval(), torch.randn(4, 6)
    h = forward_prefix(net, x, "head", head_name="fc")
    forward_from(net, h, "head", head_name="fc")

    net.fc = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).eval()

    assert torch.equal(forward_from(net, h, "head", head_name="fc"), net(x))


def test_an_unknown_block_is_named() -> None:
    with pytest.raises(ValueError, match=r"Unknown block 'thre'.*'three'"):
        forward_prefix(Net(), torch.randn(4, 6), "thre")


def test_a_compiled_network_can_be_split() -> None:
    net, x = Net().eval(), torch.randn(4, 6)
    whole = net(x)
    net.compile(backend="eager")

    h = forward_prefix(net, x, "three")

    assert torch.equal(forward_from(net, h, "three"), whole)


def test_the_table_says_where_and_why_not_and_leaves_the_network_as_it_was() -> None:
    net, x = LongSkip(), torch.randn(4, 6)
    before = {key: value.clone() for key, value in net.state_dict().items()}

    table = splits(net, x)

    assert [name for name, problem in table.items() if problem is None] == ["one", "two", "head"]
    assert "the output of `one`" in str(table["three"])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules())


def test_a_network_is_not_split_behind_auxiliary_heads() -> None:
    net, x = models.GoogLeNet(num_classes=3, init_weights=False), torch.randn(2, 3, 64, 64)

    assert check_split(net, x, "inception4a", head_name="fc") is None
    assert "differs between training" in str(check_split(net, x, "inception5b", head_name="fc"))


def test_the_classifier_can_be_split() -> None:
    torch.manual_seed(0)
    model, x = FinetuneClassifier("squeezenet1_1", num_classes=2).eval(), torch.randn(2, 3, 32, 32)

    h = model.forward_prefix(x, "head")

    assert h.shape == (2, 512, 1, 1)
    assert torch.equal(model.forward_from(h, "head"), model(x))


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in CHAINS if name not in ("skips", "positions")])
def test_a_network_on_a_gpu_can_be_split(name: str) -> None:
    make, shape = CHAINS[name]

    table = splits(make().cuda(), torch.randn(shape).cuda())

    assert set(table.values()) == {None}
