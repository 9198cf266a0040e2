"""More ways to train in several processes, each against what must come out to the last bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_finetune.distributed.supported_strategies import refuse_unsupported
from tests.distributed.rank_runs import main
from tests.distributed.ranks import run_ranks

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("rank_runs.py")
Epochs = dict[int, dict[str, Any]]
ALL = {"stem", "layer1", "layer2"}

ONCE = {"strategy": {"find_unused_parameters": True}, "wraps_once": True}
SYNCHRONISED = {"synchronised": True}
LORA = {"model": {"lora": {"r": 2}}}
CLIPPED = {"trainer": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}}
TWO: dict[str, dict[str, Any]] = {
    "plain": {},
    "wrapped once": ONCE,
    "unused parameters": {"strategy": {"find_unused_parameters": True}},
    "static graph": {"strategy": {"static_graph": True}},
    "bucket views": {"strategy": {"gradient_as_bucket_view": True}},
    "clipped": CLIPPED,
    "clipped, wrapped once": {**ONCE, **CLIPPED},
    "synchronised": SYNCHRONISED,
    "synchronised, wrapped once": {**ONCE, **SYNCHRONISED},
    "synchronised, norms train": {**SYNCHRONISED, "train_bn": True},
    "synchronised, resumed": {**SYNCHRONISED, "ckpt_path": "synchronised-mid.ckpt"},
    "resumed": {"ckpt_path": "plain-mid.ckpt"},
    "recomputed": {"model": {"gradient_checkpointing": True}},
    "lora": LORA,
    "lora, wrapped once": {**ONCE, **LORA},
    "lora resumed": {**LORA, "ckpt_path": "lora-mid.ckpt"},
    "bf16": {"trainer": {"precision": "bf16-mixed"}},
    "bf16 resumed": {"ckpt_path": "bf16-mid.ckpt", "trainer": {"precision": "bf16-mixed"}},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have written down all cases, of which each starts as the one before."""
    folder = tmp_path_factory.mktemp("two")
    run_ranks(main, folder, TWO, folder=folder)
    return folder


def epochs(folder: Path, name: str, rank: int) -> Epochs:
    content: Epochs = torch.load(folder / f"{name}-rank{rank}.pt", weights_only=True)
    return content


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What is not the same to the last bit at the end of an epoch, in two processes or two runs.

    Statistics of trained norms differ between processes in training, but not after a validation:
    DDP gives all processes those of the first one before it runs.
    """
    assert one["groups"] == other["groups"]
    assert one["metrics"] == other["metrics"]
    assert "train/loss" in one["metrics"]
    states = zip(one["state"], other["state"], strict=True)
    pairs = [(key, a[key], b[key]) for a, b in states for key in a]
    pairs += [(key, value, other["weights"][key]) for key, value in one["weights"].items()]
    return [key for key, a, b in pairs if not torch.equal(a, b)]


def moved_statistics(now: dict[str, Any], before: dict[str, Any] | None) -> set[str]:
    """The stages whose running means have moved in an epoch; at first they are 0."""
    means = {name: mean for name, mean in now.items() if name.endswith("running_mean")}
    return {
        name.split(".")[1]
        for name, mean in means.items()
        if not torch.equal(mean, before[name] if before else torch.zeros_like(mean))
    }


@pytest.mark.long
@pytest.mark.parametrize("name", TWO)
def test_two_processes_hold_the_same_bits(two: Path, name: str) -> None:
    one, other = (epochs(two, name, rank) for rank in (0, 1))

    assert one.keys() == other.keys()
    for epoch in one:
        assert differences(one[epoch], other[epoch]) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "once"),
    [
        ("plain", "wrapped once"),
        ("unused parameters", "wrapped once"),
        ("static graph", "wrapped once"),
        ("bucket views", "wrapped once"),
        ("clipped", "clipped, wrapped once"),
        ("synchronised", "synchronised, wrapped once"),
        ("lora", "lora, wrapped once"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_wrapping_anew_gives_what_wrapping_everything_once_gives(
    two: Path, name: str, once: str, rank: int
) -> None:
    reference, wrapped = epochs(two, once, rank), epochs(two, name, rank)

    for epoch in (0, 1, 2):
        assert differences(reference[epoch], wrapped[epoch]) == []


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_recomputed_activations_give_what_kept_ones_give(two: Path, rank: int) -> None:
    kept, recomputed = epochs(two, "plain", rank), epochs(two, "recomputed", rank)

    for epoch in (0, 1, 2):
        assert differences(kept[epoch], recomputed[epoch]) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("resumed", "plain"),
        ("bf16 resumed", "bf16"),
        ("synchronised, resumed", "synchronised"),
        ("lora resumed", "lora"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_resumed_amid_an_epoch_ends_the_same_in_each_process(
    two: Path, name: str, whole: str, rank: int
) -> None:
    unbroken, resumed = epochs(two, whole, rank), epochs(two, name, rank)

    assert list(resumed) == [1, 2]
    for epoch in (1, 2):
        assert differences(unbroken[epoch], resumed[epoch]) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "moving"),
    [
        ("synchronised", [set(), {"layer2"}, {"layer2", "layer1"}]),
        ("synchronised, norms train", [ALL, ALL, ALL]),
    ],
)
def test_synchronised_norms_move_where_they_train_and_stand_still_elsewhere(
    two: Path, name: str, moving: list[set[str]]
) -> None:
    written, apart = epochs(two, name, 0), epochs(two, "plain", 0)

    before = None
    for epoch, stages in enumerate(moving):
        assert moved_statistics(written[epoch]["weights"], before) == stages
        before = written[epoch]["weights"]
    key = "backbone.layer2.1.running_mean"
    assert not torch.equal(written[1]["weights"][key], apart[1]["weights"][key])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch synchronises norms on GPUs only")
def test_synchronised_norms_are_the_same_bits_in_every_phase(tmp_path: Path) -> None:
    synchronised = {"trainer": {"sync_batchnorm": True, "accelerator": "gpu"}}
    cases = {"anew": synchronised, "once": {**ONCE, **synchronised}}
    run_ranks(main, tmp_path, cases, folder=tmp_path)

    for rank in (0, 1):
        once, anew = epochs(tmp_path, "once", rank), epochs(tmp_path, "anew", rank)
        first = epochs(tmp_path, "anew", 0)
        for epoch in (0, 1, 2):
            assert differences(once[epoch], anew[epoch]) == []
            assert differences(first[epoch], anew[epoch]) == []


@pytest.mark.sweep
def test_four_processes_hold_the_same_bits(tmp_path: Path) -> None:
    cases = {"four": {"trainer": {"devices": 4}}}
    run_ranks(main, tmp_path, cases, folder=tmp_path, ranks=4)
    first, *others = (epochs(tmp_path, "four", rank) for rank in range(4))

    for other in others:
        for epoch in (0, 1, 2):
            assert differences(first[epoch], other[epoch]) == []


@pytest.mark.sweep
@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_find_unused_parameters_true"])
def test_processes_that_are_started_otherwise_train_the_same(
    two: Path, tmp_path: Path, strategy: str
) -> None:
    cases = {"other": {"trainer": {"strategy": strategy}}}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(tmp_path), json.dumps(cases)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stderr[-3000:]

    for rank in (0, 1):
        launched, other = epochs(two, "plain", rank), epochs(tmp_path, "other", rank)
        for epoch in (0, 1, 2):
            assert differences(launched[epoch], other[epoch]) == []


def test_deepspeed_is_refused_with_what_to_use_instead() -> None:
    pytest.importorskip("deepspeed")
    from lightning.pytorch.strategies import DeepSpeedStrategy

    with pytest.raises(ValueError, match=r"strategy='ddp'.*, or one device"):
        refuse_unsupported(DeepSpeedStrategy())
