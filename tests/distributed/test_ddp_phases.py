"""Several processes begin each phase at the same step, whether it is given or found."""

from pathlib import Path

import pytest
import torch

from tests.distributed.test_ddp import run

STALLS = {"monitor": "train/loss_step", "patience": 1}  # which is another one in each process
OPTIONS = {
    "schedule": [
        {"modules": "head", "warmup_steps": 2},
        {"on_plateau": STALLS, "modules": "layer2", "restore_best": True, "warmup_steps": 2},
        {"step": 7, "modules": "layer1", "freeze": "head"},  # amid the last epoch
    ],
    "trainer": {"val_check_interval": 1, "limit_val_batches": 1, "log_every_n_steps": 1},
}


@pytest.mark.long
def test_the_replicas_are_the_same_bits_in_every_phase(tmp_path: Path) -> None:
    results = run(tmp_path, OPTIONS)

    for one, other in zip(results[0], results[1], strict=True):
        assert one["trainable"] == other["trainable"]
        for key, value in one["weights"].items():
            is_statistic = "running" in key  # each process has seen its own pictures
            assert is_statistic or torch.equal(value, other["weights"][key]), key
        states = (one["optimizer"]["state"].values(), other["optimizer"]["state"].values())
        for state, twin in zip(*states, strict=True):
            assert all(torch.equal(state[key], twin[key]) for key in state)
    stalled, last = results[0][1:]
    assert {name.split(".")[1] for name in stalled["trainable"]} == {"layer2", "fc"}
    assert {name.split(".")[1] for name in last["trainable"]} == {"layer1", "layer2"}
    head = [name for name in last["weights"] if ".fc." in name]
    assert [group["name"].split("/")[0] for group in last["optimizer"]["param_groups"]] == [
        "layer2",
        "layer2",
        "layer1",
        "layer1",
    ]
    assert not any(torch.equal(stalled["weights"][name], last["weights"][name]) for name in head)
