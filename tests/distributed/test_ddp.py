"""Several processes train one network, before and after it is unfrozen."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import validated_run
from tests.distributed.ranks import run_ranks
from tests.distributed.two_processes import main

STRATEGIES: dict[str, dict[str, Any]] = {
    "static_graph": {"strategy": {"static_graph": True}},
    "bucket views": {"strategy": {"gradient_as_bucket_view": True}},
    "accumulated and clipped": {
        "trainer": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
    },
}


def run(folder: Path, options: dict[str, Any], ranks: int = 2) -> dict[int, list[dict[str, Any]]]:
    """What each process wrote down at the end of each epoch."""
    run_ranks(main, folder, options, folder=folder, ranks=ranks)
    return {
        rank: [
            torch.load(folder / f"rank{rank}-epoch{epoch}.pt", weights_only=True)
            for epoch in range(3)
        ]
        for rank in range(ranks)
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    return run(tmp_path_factory.mktemp("plain"), {})


def assert_are_replicas(results: dict[int, list[dict[str, Any]]]) -> None:
    for epoch, (one, other) in enumerate(zip(results[0], results[1], strict=True)):
        assert len(one["trainable"]) == [2, 6, 10][epoch]
        for key, value in one["weights"].items():
            is_statistic = "running" in key  # each process has seen its own pictures
            assert is_statistic or torch.equal(value, other["weights"][key]), key
        for state, twin in zip(
            one["optimizer"]["state"].values(), other["optimizer"]["state"].values(), strict=True
        ):
            assert all(torch.equal(state[key], twin[key]) for key in state)


@pytest.mark.slow
def test_the_replicas_are_the_same_bits_in_every_phase(plain: Any) -> None:
    assert_are_replicas(plain)


@pytest.mark.sweep
@pytest.mark.parametrize("name", STRATEGIES)
def test_so_they_are_under_each_strategy(tmp_path: Path, name: str) -> None:
    assert_are_replicas(run(tmp_path, STRATEGIES[name]))


@pytest.mark.slow
def test_what_is_frozen_does_not_move_and_what_trains_does(plain: Any) -> None:
    head_only, with_layer2, everything = plain[0]

    def moved(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
        pairs = ((key, value, after["weights"][key]) for key, value in before["weights"].items())
        return {key.split(".")[1] for key, old, new in pairs if not torch.equal(old, new)}

    assert moved(head_only, with_layer2) == {"layer2", "fc"}
    assert moved(with_layer2, everything) == {"layer1", "layer2", "fc"}
    assert [len(state["optimizer"]["param_groups"]) for state in (head_only, everything)] == [2, 6]
    # Gradients of 4 bytes: a frozen phase sends what trains, and no more.
    assert [state["bytes"] for state in (head_only, with_layer2, everything)] == [108, 1356, 1836]


@pytest.mark.slow
def test_validation_counts_every_picture_once(plain: Any) -> None:
    batches = [plain[rank][0]["evaluated"] for rank in (0, 1)]

    assert sum(map(sum, batches)) == 107
    assert len(batches[0]) == len(batches[1]), "or one process would wait for the other"


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    validated_run.main(one, 1)
    run_ranks(validated_run.main, two, 2, folder=tmp_path)
    measured = [json.loads(file.read_text()) for file in (one, two)]

    # The last bits of a sum hang on its order.
    assert measured[0] == pytest.approx(measured[1], rel=1e-6)
