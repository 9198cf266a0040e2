"""A linear probe in two processes: one head, of all pictures."""

from typing import Any

import pytest
import torch

from tests.distributed.probe_runs import main
from tests.distributed.ranks import run_ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each process of two, and one alone, have written down."""
    folder = tmp_path_factory.mktemp("probe")
    run_ranks(main, folder, 2, folder=folder)
    main(folder, devices=1)
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


@pytest.mark.long
@pytest.mark.parametrize("when", ["head", "trained"])
def test_both_processes_have_the_same_bits(runs: dict[str, Any], when: str) -> None:
    one, other = runs["2-0"][when], runs["2-1"][when]

    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.long
def test_the_head_is_that_of_one_process_but_for_rounding(runs: dict[str, Any]) -> None:
    alone, two = runs["1-0"], runs["2-0"]

    # The limit on pictures is a share of all, so both see the same ones. In batches of another
    # make-up a convolution may round its sums otherwise: features differ in their last bits, and
    # the optimum of a loss that is curved by 1e-5 at least moves by at most 1e5 times as much.
    assert two["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    weight = alone["head"]["backbone.fc.weight"]
    torch.testing.assert_close(
        two["head"]["backbone.fc.weight"], weight, rtol=0, atol=1e-3 * float(weight.abs().max())
    )
