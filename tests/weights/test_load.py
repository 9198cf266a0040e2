from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations

from lit_finetune.weights.load import load_weights


class Network(nn.Module):
    """A convolution, a norm, a wide layer, and a head called `fc`."""

    def __init__(self, num_classes: int = 3, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Linear(4, width), nn.ReLU())
        self.fc = nn.Linear(width, num_classes)


class Wrapped(nn.Module):
    """The user's own class around a known network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"backbone": Network()})
        self.fc = nn.Linear(3, 2)


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def is_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


PREFIXES = """
    module. _orig_mod. model. backbone. encoder. encoder_q. net. network.
    module.encoder_q. model._orig_mod.module.backbone. my.own.thing.
"""


@pytest.mark.parametrize("prefix", ["", *PREFIXES.split()])
def test_any_prefix_is_taken_off_and_told(path, prefix):
    saved, network = Network(), Network()
    torch.save({"state_dict": prefixed(prefix, saved.state_dict())}, path)
    report = load_weights(network, path)
    assert is_equal(network.state_dict(), saved.state_dict())
    told = prefix.replace("_orig_mod.", "")  # all but what torch.compile put there
    assert (report.entry, report.stripped, report.share) == ("state_dict", told, 1.0)
    assert not report.missing + report.unexpected + report.mismatched + report.head_dropped
    assert told in str(report)


def test_a_network_inside_the_users_own_class_is_filled(path):
    saved, network = Network(), Wrapped()
    torch.save(prefixed("module.", saved.state_dict()), path)
    report = load_weights(network, path, head_name="fc")
    assert is_equal(network.net["backbone"].state_dict(), saved.state_dict())
    assert (report.stripped, report.added) == ("module.", "net.backbone.")
    assert report.missing == ("fc.weight", "fc.bias")


def test_a_compiled_network_is_filled(path):
    saved, network = Network(), Network()
    torch.save(saved.state_dict(), path)
    load_weights(torch.compile(network), path, head_name="_orig_mod.fc")
    assert is_equal(network.state_dict(), saved.state_dict())


def test_a_checkpoint_of_lightning_is_read(path):
    saved, network = Network(), Network()
    state = prefixed("backbone.", saved.state_dict()) | {"loss.weight": torch.ones(3)}
    torch.save({"state_dict": state, "hyper_parameters": {"lr": 0.1}, "epoch": 3}, path)
    report = load_weights(network, path)
    assert is_equal(network.state_dict(), saved.state_dict())
    assert report.unexpected == ("loss.weight",)


@pytest.mark.parametrize("entry", ["state_dict_ema", "model_ema", "ema", "teacher"])
@pytest.mark.parametrize("comes_first", [True, False])
def test_the_averaged_copy_is_taken_and_told(path, entry, comes_first):
    averaged, network = Network(), Network()
    entries = {"state_dict": Network().state_dict(), entry: averaged.state_dict()}
    torch.save(dict(sorted(entries.items(), reverse=comes_first)), path)
    report = load_weights(network, path)
    assert is_equal(network.state_dict(), averaged.state_dict())
    assert report.entry == entry
    assert entry in str(report)


def test_an_averaged_copy_without_running_statistics_is_not_preferred(path):
    saved, network = Network(), Network()
    torch.save({"model": saved.state_dict(), "ema": dict(Network().named_parameters())}, path)
    assert load_weights(network, path).entry == "model"
    assert is_equal(network.state_dict(), saved.state_dict())


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("module.encoder_q.", "module.encoder_k."),
        ("base_encoder.", "momentum_encoder."),
        ("online_network.", "target_network."),
        ("ema_model.", "model."),
    ],
)
@pytest.mark.parametrize("comes_first", [True, False])
def test_of_two_copies_in_one_state_dict_the_better_is_taken(path, better, worse, comes_first):
    saved, network = Network(), Network()
    states = [prefixed(better, saved.state_dict()), prefixed(worse, Network().state_dict())]
    first, second = states if comes_first else reversed(states)
    torch.save(first | second, path)
    assert load_weights(network, path).stripped == better
    assert is_equal(network.state_dict(), saved.state_dict())


def test_of_several_networks_the_one_that_fits_is_taken(path):
    saved, network = Network(), Network()
    torch.save({"large": Network(width=64).state_dict(), "small": saved.state_dict()}, path)
    assert load_weights(network, path).entry == "small"
    assert is_equal(network.state_dict(), saved.state_dict())


def test_a_head_of_another_class_count_is_dropped_and_told(path):
    saved, network = Network(num_classes=1000), Network()
    head = state_of(network.fc)
    torch.save(saved.state_dict(), path)
    report = load_weights(network, path)
    assert report.head_dropped == ("fc.weight", "fc.bias")
    assert report.mismatched == (("fc.weight", (1000, 8), (3, 8)), ("fc.bias", (1000,), (3,)))
    assert (report.share, report.missing) == (1.0, ())
    assert is_equal(network.fc.state_dict(), head)
    assert "fc.weight (1000x8 in the file, 3x8 here)" in str(report)


def test_a_head_that_fits_in_part_is_dropped_whole(path):
    saved, network = Network(), Network()
    saved.fc = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    network.fc = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    head = state_of(network.fc)
    torch.save(saved.state_dict(), path)
    report = load_weights(network, path, head_name="fc")
    assert len(report.head_dropped) == 4
    assert is_equal(network.fc.state_dict(), head)


def test_a_file_without_a_head_fills_the_backbone(path):
    saved, network = Network(), Network()
    state = {name: value for name, value in saved.state_dict().items() if "fc" not in name}
    torch.save(state, path)
    report = load_weights(network, path)
    assert (report.share, report.missing) == (1.0, ("fc.weight", "fc.bias"))
    assert network.layer1[0].weight.equal(saved.layer1[0].weight)


def test_a_network_without_a_head_is_all_backbone(path):
    saved = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    torch.save(saved.state_dict(), path)
    assert load_weights(network, path).share == 1.0
    assert is_equal(network.state_dict(), saved.state_dict())


def test_a_network_that_is_all_head_is_not_left_random(path):
    torch.save(nn.Sequential(nn.Linear(4, 10)).state_dict(), path)
    with pytest.raises(ValueError, match=r"fits 0\.0%"):
        load_weights(nn.Sequential(nn.Linear(4, 2)), path, head_name="0")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_are_cast_to_the_networks_dtype(path, dtype):
    saved, network = Network(), Network()
    torch.save(saved.to(dtype).state_dict(), path)
    load_weights(network, path)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network.conv1.weight.equal(saved.conv1.weight.float())


def test_whole_numbers_do_not_pass_for_weights(path):
    torch.save({name: value.to(torch.int8) for name, value in Network().state_dict().items()}, path)
    with pytest.raises(ValueError, match=r"fits 0\.0%"):
        load_weights(Network(), path)


def test_batch_norms_counter_may_be_missing(path):
    saved, network = Network(), Network()
    state = saved.state_dict()
    del state["bn1.num_batches_tracked"]
    torch.save(state, path)
    report = load_weights(network, path)
    assert (report.missing, report.share) == ((), 1.0)


def test_frozen_parameters_are_filled_and_stay_frozen(path):
    saved, network = Network(), Network().requires_grad_(False)
    torch.save(saved.state_dict(), path)
    load_weights(network, path)
    assert is_equal(network.state_dict(), saved.state_dict())
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weight_norm_becomes_plain_weights(path, norm):
    saved, network = Network(), Network()
    norm(saved.conv1)
    with torch.no_grad():
        for factor in saved.conv1.parameters():
            factor.mul_(1.5)
    torch.save(saved.state_dict(), path)
    assert load_weights(network, path).missing == ()
    picture = torch.rand(1, 3, 5, 5)
    torch.testing.assert_close(network.conv1(picture), saved.conv1(picture))


def test_a_weight_normed_network_takes_the_factors_as_they_are(path):
    saved, network = Network(), Network()
    for one in saved, network:
        parametrizations.weight_norm(one.conv1)
    torch.save(saved.state_dict(), path)
    load_weights(network, path)
    assert is_equal(network.state_dict(), saved.state_dict())


def test_too_little_that_fits_is_refused_and_changes_nothing(path):
    saved, network = Network(width=16), Network()
    before = state_of(network)
    torch.save({"model": saved.state_dict() | {"extra.weight": torch.ones(2)}}, path)
    with pytest.raises(ValueError, match="the network was left as it is") as refused:
        load_weights(network, path)
    assert is_equal(network.state_dict(), before)
    for told in [
        "fits 75.0%",  # 120 of 160 parameters
        "min_match=0.9",
        "layer1.0.weight (16x4 in the file, 8x4 here)",
        "extra.weight",
        "weights.pth",
        "model",
    ]:
        assert told in str(refused.value)


def test_a_lower_bar_loads_what_fits(path):
    saved, network = Network(width=16), Network()
    wide = network.layer1[0].weight.clone()
    torch.save(saved.state_dict(), path)
    report = load_weights(network, path, min_match=0.5)
    assert report.share == 120 / 160
    assert network.conv1.weight.equal(saved.conv1.weight)
    assert network.layer1[0].weight.equal(wide)


def test_the_share_counts_parameters_of_the_backbone_only(path):
    saved, network = Network(), Network(num_classes=3)
    state = {name: value for name, value in saved.state_dict().items() if "fc" in name}
    torch.save(state, path)
    assert load_weights(network, path, min_match=0.0).share == 0.0


def test_nothing_in_common_is_refused_with_names_of_both(path):
    torch.save({"features.0.kernel": torch.ones(2, 2)}, path)
    with pytest.raises(ValueError, match=r"(?s)fits 0\.0%.*missing.*conv1.*unexpected.*features"):
        load_weights(Network(), path)


def test_a_head_that_is_not_there_names_the_nearest(path):
    torch.save(Network().state_dict(), path)
    with pytest.raises(ValueError, match=r"no parameters in a head 'layer2'.*'layer1'"):
        load_weights(Network(), path, head_name="layer2")


@pytest.mark.parametrize("min_match", [-0.1, 90])
def test_min_match_is_a_share(path, min_match):
    with pytest.raises(ValueError, match=rf"between 0 and 1, but got {min_match}"):
        load_weights(Network(), path, min_match=min_match)


def test_a_network_that_asks_for_the_version_of_its_weights_is_filled(path):
    saved, network = (torchvision.models.mnasnet0_5(num_classes=2) for _ in range(2))
    torch.save({"state_dict": dict(saved.state_dict())}, path)
    assert load_weights(network, path).share == 1.0
    assert is_equal(network.state_dict(), saved.state_dict())


def test_a_head_with_a_norm_needs_no_counter(path):
    saved, network = Network(), Network()
    for one in saved, network:
        one.fc = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))
    state = {name: value for name, value in saved.state_dict().items() if "num_" not in name}
    torch.save(state, path)
    assert load_weights(network, path, head_name="fc").head_dropped == ()
    assert network.fc[1].weight.equal(saved.fc[1].weight)
