"""Several processes hold a part of each parameter (FSDP2), before and after it is unfrozen."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_finetune import FinetuneClassifier
from lit_finetune.checkpoints.sharded import gather_checkpoint
from tests.distributed.ranks import run_ranks
from tests.distributed.sharded_runs import Net, main

Epochs = dict[int, dict[str, Any]]

FOLDER = {"strategy": {"save_distributed_checkpoint": True}}
STALLS = {"monitor": "val/loss", "patience": 1, "mode": "max"}
PHASES = {
    "schedule": [
        {"modules": "head", "warmup_steps": 2},
        {"on_plateau": STALLS, "modules": "layer2", "restore_best": True, "warmup_steps": 2},
        {"step": 7, "modules": "layer1", "freeze": "head"},  # amid the last epoch
    ]
}
STEPWISE = {"trainer": {"val_check_interval": 1}}
CLIPPED = {"trainer": {"gradient_clip_val": 0.1}}
ACCUMULATED = {"trainer": {"accumulate_grad_batches": 2}}
BF16 = {"trainer": {"precision": "bf16-mixed"}}
LORA = {"model": {"lora": {"r": 2}}}
COMPILED = {"model": {"compile": True}, "drop": 0.0}  # a compiled dropout draws its own numbers
RECOMPUTED = {"model": {"gradient_checkpointing": True}}
FUSED: dict[str, Any] = {"optimizer": "default"}
DDP: dict[str, Any] = {"strategy": "ddp"}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"saves": 5, "optimizer": "adamw"},
    "plain ddp": {**DDP, "saves": 5, "optimizer": "adamw"},
    "plain resumed": {"ckpt_path": "plain-mid.ckpt", "optimizer": "adamw"},
    "plain in ddp": {**DDP, "ckpt_path": "plain-mid.ckpt", "optimizer": "adamw"},
    "ddp in shards": {"ckpt_path": "plain ddp-mid.ckpt", "optimizer": "adamw", "fails": True},
    "folder": {
        **FOLDER,
        "saves": 7,
        "last": True,
        "then": "validate",
        "then_path": "folder-mid.ckpt",
    },
    "folder resumed": {**FOLDER, "ckpt_path": "folder-mid.ckpt"},
    "phases": {**PHASES, **STEPWISE, "saves": 4},
    "phases ddp": {**PHASES, **STEPWISE, **DDP},
    "phases resumed": {**PHASES, **STEPWISE, "ckpt_path": "phases-mid.ckpt"},
    "own": {**PHASES, **STEPWISE, "module": "own", "saves": 8},
    "own ddp": {**PHASES, **STEPWISE, **DDP, "module": "own"},
    "own resumed": {**PHASES, **STEPWISE, "module": "own", "ckpt_path": "own-mid.ckpt"},
    "norms": {"callback": {"train_bn": True}, "optimizer": "plain sgd", "saves": 5, "last": True},
    "norms ddp": {**DDP, "callback": {"train_bn": True}, "optimizer": "plain sgd"},
    "norms resumed": {
        "callback": {"train_bn": True},
        "optimizer": "plain sgd",
        "ckpt_path": "norms-mid.ckpt",
    },
    "bf16": BF16,
    "bf16 ddp": {**BF16, **DDP},
    "fused": FUSED,
    "fused ddp": {**FUSED, **DDP},
    "lora": {**LORA, "saves": 5},
    "lora ddp": {**LORA, **DDP},
    "lora resumed": {**LORA, "ckpt_path": "lora-mid.ckpt"},
    "recomputed": RECOMPUTED,
    "recomputed ddp": {**RECOMPUTED, **DDP},
    "compiled": COMPILED,
    "compiled ddp": {**COMPILED, **DDP},
    "clipped": CLIPPED,
    "clipped ddp": {**CLIPPED, **DDP},
    "accumulated": ACCUMULATED,
    "accumulated ddp": {**ACCUMULATED, **DDP},
    "tensor parallel": {
        "strategy": {"data_parallel_size": 1, "tensor_parallel_size": 2},
        "fails": True,
    },
    "sync_batchnorm": {"trainer": {"sync_batchnorm": True}, "fails": True},
    "not sharded": {"module": "forgetful", "fails": True},
    "probe": {"probe": True, "fails": True},
    "cache": {"cache": True, "fails": True},
}


def run(folder: Path, cases: dict[str, dict[str, Any]], ranks: int = 2) -> None:
    run_ranks(main, folder, cases, folder=folder, ranks=ranks)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have written down all cases, of which each starts as the one before."""
    folder = tmp_path_factory.mktemp("sharded")
    run(folder, CASES)
    return folder


def epochs(folder: Path, name: str, rank: int = 0) -> Epochs:
    content: Epochs = torch.load(folder / f"{name}-rank{rank}.pt", weights_only=True)
    return content


def values(epoch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights, statistics and what the optimizer keeps, by name."""
    states = epoch["state"].items()
    kept = {f"{name} {key}": value for name, state in states for key, value in state.items()}
    return {**epoch["weights"], **kept}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What is not the same to the last bit at the end of an epoch, in two processes or two runs."""
    assert one["groups"] == other["groups"]
    assert one["trains"] == other["trains"]
    a, b = values(one), values(other)
    assert a.keys() == b.keys()
    return [name for name, value in a.items() if not torch.equal(value, b[name])]


@pytest.mark.long
@pytest.mark.parametrize("name", ["plain", "phases", "own", "norms", "bf16", "lora", "recomputed"])
def test_shards_train_what_ddp_trains_to_the_last_bit(runs: Path, name: str) -> None:
    sharded, ddp = epochs(runs, name), epochs(runs, f"{name} ddp")

    assert list(sharded) == list(ddp) == [0, 1, 2]
    for epoch in sharded:
        assert differences(sharded[epoch], ddp[epoch]) == []


@pytest.mark.long
@pytest.mark.parametrize("name", ["clipped", "accumulated", "fused", "compiled"])
def test_shards_train_what_ddp_trains_up_to_rounding(runs: Path, name: str) -> None:
    # The norm is summed shard by shard; each batch's gradients are averaged, not their sum; a
    # fused step rounds the last numbers of a tensor otherwise, and a shard has other last ones.
    sharded, ddp = epochs(runs, name), epochs(runs, f"{name} ddp")

    for epoch in sharded:
        pairs = zip(values(sharded[epoch]).values(), values(ddp[epoch]).values(), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.long
@pytest.mark.parametrize("name", ["plain", "folder", "phases", "own", "norms"])
def test_both_processes_put_the_same_together_from_their_halves(runs: Path, name: str) -> None:
    one, other = epochs(runs, name, rank=0), epochs(runs, name, rank=1)

    for epoch in one:
        assert differences(one[epoch], other[epoch]) == []
        total = sum(one[epoch]["sizes"])
        assert one[epoch]["here"] + other[epoch]["here"] == total
        assert abs(one[epoch]["here"] / total - 0.5) < 0.1


@pytest.mark.long
@pytest.mark.parametrize("name", ["plain", "folder", "phases", "own", "norms", "lora"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_resumed_amid_an_epoch_ends_the_same(runs: Path, name: str, rank: int) -> None:
    unbroken, resumed = epochs(runs, name, rank), epochs(runs, f"{name} resumed", rank)

    assert 2 in resumed
    for epoch in resumed:
        assert differences(unbroken[epoch], resumed[epoch]) == []


@pytest.mark.long
def test_a_file_of_a_sharded_run_resumes_under_ddp(runs: Path) -> None:
    unbroken, resumed = epochs(runs, "plain"), epochs(runs, "plain in ddp")

    assert list(resumed) == [1, 2]
    for epoch in resumed:
        assert differences(unbroken[epoch], resumed[epoch]) == []


@pytest.mark.long
@pytest.mark.parametrize("name", ["plain", "own"])
def test_what_is_frozen_does_not_move_and_keeps_nothing(runs: Path, name: str) -> None:
    run_ = epochs(runs, name)

    for epoch, noted in run_.items():
        trains = set(noted["trains"])
        assert set(noted["state"]) == trains
        assert set(noted["with gradient"]) <= trains
        before = run_.get(epoch - 1)
        if before and set(before["trains"]) | trains == trains:
            moved = {
                key
                for key, value in noted["weights"].items()
                if not torch.equal(value, before["weights"][key])
            }
            statistics = {key for key in moved if "running" in key or "num_batches" in key}
            assert moved - statistics == trains
            frozen = {"backbone.stem", "net.stem"}
            assert not any(key.startswith(tuple(frozen)) for key in moved)


@pytest.mark.long
def test_only_gradients_of_what_trains_are_sent(runs: Path) -> None:
    # Four bytes a number, three batches; each tensor is padded to two shards along its first side
    def padded(noted: dict[str, Any]) -> int:
        shapes = [noted["weights"][name].shape for name in noted["trains"]]
        return sum((n + n % 2) * torch.Size(rest).numel() for n, *rest in shapes)

    for noted in epochs(runs, "plain").values():
        assert noted["sent"] == 3 * 4 * padded(noted)


@pytest.mark.long
def test_norm_layers_and_dropout_of_frozen_blocks_are_at_rest(runs: Path) -> None:
    held = {epoch: set(noted["held"]) for epoch, noted in epochs(runs, "plain").items()}

    for epoch, blocks in enumerate((("stem", "layer1", "layer2"), ("stem", "layer1"), ("stem",))):
        layers = {f"backbone.{block}.{n}" for block in blocks for n in (1, 3)}
        trained = {f"backbone.{block}.{n}" for block in ("layer1", "layer2") for n in (1, 3)}
        assert layers <= held[epoch]
        assert not held[epoch] & (trained - layers)


@pytest.mark.long
@pytest.mark.parametrize("name", ["folder", "norms"])
def test_the_classifier_is_loaded_from_a_folder_of_shards_or_a_file(runs: Path, name: str) -> None:
    checkpoint = runs / name / "last.ckpt"

    model = FinetuneClassifier.load_from_checkpoint(checkpoint, backbone=Net())

    assert checkpoint.is_dir() == (name == "folder")
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.ckpt"]
    expected = epochs(runs, name)[2]["weights"]
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tensor parallel", "data_parallel_size=2, tensor_parallel_size=1"),
        ("sync_batchnorm", "convert_sync_batchnorm"),
        ("not sharded", "net.fc.weight, net.fc.bias"),
        ("probe", "not supported under ModelParallelStrategy: use Trainer(strategy='ddp')"),
        ("cache", "needs whole parameters: use one device, or 'ddp'"),
        ("ddp in shards", "Resume it under the strategy that wrote it"),
    ],
)
def test_what_cannot_be_right_is_refused_with_what_to_do(runs: Path, name: str, says: str) -> None:
    assert says in (runs / f"{name}.txt").read_text()


def test_a_folder_that_is_no_whole_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no whole checkpoint: it has no file `meta\.pt`"):
        gather_checkpoint(tmp_path)
