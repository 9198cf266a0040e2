"""Processes hold pieces of vectors of parameters (FSDP1), before and after these are unfrozen."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from lit_finetune import FinetuneClassifier
from lit_finetune.distributed.supported_strategies import (
    refuse_arguments_under_fsdp1,
    refuse_fsdp1_options,
    refuse_unsupported,
)
from lit_finetune.modules.fsdp1 import refuse_non_elementwise_optimizer
from tests.distributed.sharded_runs import Net
from tests.distributed.test_sharded import differences, epochs, run, values

FLAT: dict[str, Any] = {"strategy": {"flat": {}}}
DDP: dict[str, Any] = {"strategy": "ddp"}
ADAMW = {"optimizer": "adamw"}
STEPWISE = {"trainer": {"val_check_interval": 1}}
STALLS = {"monitor": "val/loss", "patience": 1, "mode": "max"}
PHASES: dict[str, Any] = {
    **STEPWISE,
    "schedule": [
        {"modules": "head", "warmup_steps": 2},
        {"on_plateau": STALLS, "modules": "layer2", "warmup_steps": 2},
        {"step": 7, "modules": "layer1", "freeze": "head"},  # amid the last epoch
    ],
}
OWN = {"module": "own", **PHASES}
NORMS: dict[str, Any] = {"callback": {"train_bn": True}}
CASES: dict[str, dict[str, Any]] = {
    "plain": {**FLAT, **ADAMW, "saves": 5, "last": True},
    "plain ddp": {**DDP, **ADAMW, "saves": 5},
    "plain resumed": {**FLAT, **ADAMW, "ckpt_path": "plain-mid.ckpt"},
    "plain in ddp": {**DDP, **ADAMW, "ckpt_path": "plain-mid.ckpt"},
    "ddp in pieces": {**FLAT, **ADAMW, "ckpt_path": "plain ddp-mid.ckpt", "fails": True},
    "phases": {**FLAT, **PHASES, "saves": 4},
    "phases ddp": {**DDP, **PHASES},
    "phases resumed": {**FLAT, **PHASES, "ckpt_path": "phases-mid.ckpt"},
    "own": {**FLAT, **OWN, "saves": 8},
    "own ddp": {**DDP, **OWN},
    "own resumed": {**FLAT, **OWN, "ckpt_path": "own-mid.ckpt"},
    "norms": {**FLAT, **NORMS, "saves": 5},
    "norms ddp": {**DDP, **NORMS},
    "norms resumed": {**FLAT, **NORMS, "ckpt_path": "norms-mid.ckpt"},
    "twice": {**FLAT, "then": "validate", "then_path": "plain-mid.ckpt", "fails": True},
    "best": {
        **FLAT,
        **STEPWISE,
        "schedule": [
            {"modules": "head"},
            {"on_plateau": STALLS, "modules": "all", "restore_best": True},
        ],
        "fails": True,
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have written down all cases."""
    folder = tmp_path_factory.mktemp("flat")
    run(folder, CASES)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("name", ["plain", "phases", "own", "norms"])
def test_pieces_train_what_ddp_trains_to_the_last_bit(runs: Path, name: str) -> None:
    flat, ddp = epochs(runs, name), epochs(runs, f"{name} ddp")

    assert list(flat) == list(ddp) == [0, 1, 2]
    for epoch in flat:
        assert differences(flat[epoch], ddp[epoch]) == []


@pytest.mark.long
@pytest.mark.parametrize("name", ["plain", "phases", "own", "norms"])
def test_both_processes_put_the_same_together_from_their_pieces(runs: Path, name: str) -> None:
    one, other = epochs(runs, name, rank=0), epochs(runs, name, rank=1)

    for epoch in one:
        assert differences(one[epoch], other[epoch]) == []
        total = sum(one[epoch]["sizes"])
        assert one[epoch]["here"] + other[epoch]["here"] == total
        assert abs(one[epoch]["here"] / total - 0.5) < 0.1


@pytest.mark.long
@pytest.mark.parametrize("name", ["plain", "phases", "own", "norms"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_resumed_amid_an_epoch_ends_the_same(runs: Path, name: str, rank: int) -> None:
    unbroken, resumed = epochs(runs, name, rank), epochs(runs, f"{name} resumed", rank)

    assert 2 in resumed
    for epoch in resumed:
        assert differences(unbroken[epoch], resumed[epoch]) == []


@pytest.mark.long
def test_a_checkpoint_of_pieces_resumes_under_ddp_and_loads(runs: Path) -> None:
    unbroken, resumed = epochs(runs, "plain"), epochs(runs, "plain in ddp")
    model = FinetuneClassifier.load_from_checkpoint(runs / "plain" / "last.ckpt", backbone=Net())

    assert list(resumed) == [1, 2]
    for epoch in resumed:
        assert differences(unbroken[epoch], resumed[epoch]) == []
    state, expected = model.state_dict(), unbroken[2]["weights"]
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


@pytest.mark.long
@pytest.mark.parametrize("name", ["plain", "own"])
def test_what_is_frozen_does_not_move_and_keeps_nothing(runs: Path, name: str) -> None:
    run_ = epochs(runs, name)

    for epoch, noted in run_.items():
        trains = set(noted["trains"])
        assert set(noted["state"]) == trains
        assert set(noted["with gradient"]) <= trains
        if epoch:
            before, now = values(run_[epoch - 1]), noted["weights"]
            assert not any("stem" in n and not torch.equal(v, before[n]) for n, v in now.items())


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("twice", "new module from a checkpoint"),
        ("best", "`restore_best`.*ModelParallelStrategy"),
        ("ddp in pieces", "Resume it under the strategy that wrote it"),
    ],
)
def test_what_cannot_be_right_is_refused_with_what_to_do(runs: Path, name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        raise ValueError((runs / f"{name}.txt").read_text())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"use_orig_params": False}, "use_orig_params=False"),
        ({"state_dict_type": "sharded"}, "state_dict_type='sharded'"),
        ({"sharding_strategy": "SHARD_GRAD_OP"}, "SHARD_GRAD_OP"),
        ({"cpu_offload": True}, "cpu_offload"),
        ({"activation_checkpointing_policy": {torch.nn.Linear}}, "activation_checkpointing"),
        ({"ignored_states": []}, "ignored_states"),
    ],
)
def test_options_not_known_to_be_right_are_refused(options: dict[str, Any], says: str) -> None:
    for refuse in (refuse_unsupported, refuse_fsdp1_options):
        with pytest.raises(ValueError, match=rf"{says}.*ModelParallelStrategy"):
            refuse(FSDPStrategy(**options))


def test_an_optimizer_that_looks_at_whole_weights_is_refused() -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    refuse_non_elementwise_optimizer(torch.optim.AdamW([weight]))

    with pytest.raises(ValueError, match=r"Adafactor would be given flat pieces.*Use one of"):
        refuse_non_elementwise_optimizer(torch.optim.Adafactor([weight]))


def test_arguments_not_known_to_be_right_are_refused() -> None:
    refuse_arguments_under_fsdp1({"compile": False, "lora": None})

    with pytest.raises(ValueError, match=r"`compile`, `lora`.*ModelParallelStrategy"):
        refuse_arguments_under_fsdp1({"compile": True, "lora": {"r": 2}})


def test_fsdp_by_its_defaults_is_not_refused() -> None:
    refuse_unsupported(FSDPStrategy())
