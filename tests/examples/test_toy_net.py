"""The toy net: `fc2` is frozen, then joins the running optimizer."""

import pytest
import torch

from examples import toy_net_freeze_fc2

FC2 = {"fc2.weight", "fc2.bias"}
OTHERS = {"fc1.weight", "fc1.bias", "fc3.weight", "fc3.bias"}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Where the net is saved after its first training."""
    return tmp_path_factory.mktemp("toy") / "net.pth"


@pytest.fixture(scope="module")
def seen(path):
    """What was seen of the second training, epoch by epoch."""
    torch.manual_seed(0)
    return toy_net_freeze_fc2.main(str(path))


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_second_training_starts_from_what_the_first_one_saved(seen, path):
    saved = torch.load(path, weights_only=True)

    assert saved.keys() == seen.starts[0].keys()
    assert not changed(saved, seen.starts[0])


def test_fc2_does_not_move_while_it_is_frozen(seen):
    assert changed(seen.starts[0], seen.starts[1]) == OTHERS
    assert changed(seen.starts[1], seen.starts[2]) == OTHERS


def test_fc2_moves_from_the_epoch_on_that_unfreezes_it(seen):
    assert changed(seen.starts[2], seen.starts[3]) == OTHERS | FC2


def test_what_is_told_is_what_happened(seen):
    still = [{name for name, distance in moves.items() if distance == 0} for moves in seen.moves]

    assert still == [FC2, FC2, set(), set()]


def test_fc2_joins_the_running_optimizer_as_one_group_of_its_name(seen):
    assert seen.groups == [["its own"], ["its own"], ["its own", "fc2"], ["its own", "fc2"]]
