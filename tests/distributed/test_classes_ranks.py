"""A head that stays, in two processes: both put its outputs in the order of the data."""

from typing import Any

import pytest
import torch

from tests.classes.test_by_name import NAMES, ORDERS, OTHERS, Data, classifier, trainer
from tests.distributed.class_runs import main
from tests.distributed.ranks import run_ranks


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each process of two, and one alone, have written down; and the checkpoint's head."""
    folder = tmp_path_factory.mktemp("classes")
    torch.manual_seed(0)
    model, run = classifier(), trainer(max_epochs=15)
    run.fit(model, Data(NAMES))
    run.save_checkpoint(folder / "own.ckpt")
    run_ranks(main, folder, folder / "own.ckpt", 2, folder=folder)
    main(folder, folder / "own.ckpt", devices=1)
    found = {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}
    return {**found, "before": model.backbone.fc.weight.detach()}


@pytest.mark.long
def test_both_processes_begin_with_the_outputs_in_the_order_of_the_data(
    runs: dict[str, Any],
) -> None:
    wanted = runs["before"][[NAMES.index(name) for name in ORDERS[1]]]
    for process in ("1-0", "2-0", "2-1"):
        found = runs[process]["reordered"]
        assert found["classes"] == ORDERS[1]
        assert found["val/acc"] == 1
        torch.testing.assert_close(found["head"]["weight"], wanted, rtol=0, atol=1e-6)


@pytest.mark.long
def test_both_processes_begin_with_one_new_head_for_other_classes(runs: dict[str, Any]) -> None:
    one, other = runs["2-0"]["renewed"], runs["2-1"]["renewed"]

    assert one["classes"] == other["classes"] == OTHERS
    assert all(torch.equal(one["head"][name], other["head"][name]) for name in one["head"])
    assert not torch.allclose(one["head"]["weight"], runs["before"], atol=1e-3)
    torch.testing.assert_close(one["said"], other["said"])
