"""The comparison with the peers measures what it says, and its table says what was measured."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.peers.isolation import Outcome, ask, measure
from benchmarks.peers.report import as_markdown, tables
from benchmarks.peers.situations import SCHEDULER_SITUATIONS, SITUATIONS, Question, Situation
from benchmarks.peers.systems import ByHand, LitFinetune, System
from benchmarks.peers.training import TinyNet

NAMED = {situation.name: situation for situation in SITUATIONS + SCHEDULER_SITUATIONS}


@pytest.mark.parametrize("name", ["frozen", "own-groups", "second-trainer", "SequentialLR"])
def test_this_project_is_right(tmp_path: Path, name: str) -> None:
    for outcome in measure(LitFinetune(), NAMED[name], tmp_path):
        assert outcome.verdict == "right"


def test_a_system_that_goes_wrong_is_seen_with_its_figures(tmp_path: Path) -> None:
    statistics, output, dropped, weights = measure(ByHand(), NAMED["frozen"], tmp_path)

    assert [o.verdict for o in (statistics, output, dropped)] == ["wrong"] * 3
    assert dropped.figure == 12
    assert weights.verdict == "right"


def one_figure_then(error: BaseException, *, steps: int) -> Situation:
    def measured(system: System, folder: Path) -> Iterator[float]:
        yield 0.0
        TinyNet.steps_taken += steps
        raise error

    return Situation("made up", measured, (Question("a", "b"), Question("c", "d")))


@pytest.mark.parametrize(
    ("error", "steps", "verdict"),
    [
        (ValueError("no"), 0, "not offered"),
        (ValueError("no"), 1, "crashes"),
        (KeyError("no"), 0, "crashes"),
    ],
)
def test_an_error_on_purpose_and_before_training_is_a_refusal(
    tmp_path: Path, error: Exception, steps: int, verdict: str
) -> None:
    first, second = measure(LitFinetune(), one_figure_then(error, steps=steps), tmp_path)

    assert first == Outcome("right", 0.0)
    assert second.verdict == verdict


def test_a_process_that_dies_or_hangs_costs_its_own_row() -> None:
    def dies(system: System, folder: Path) -> Iterator[float]:
        os._exit(3)

    def hangs(system: System, folder: Path) -> Iterator[float]:
        while True:
            pass

    question = (Question("a", "b"),)
    (dead,) = ask(LitFinetune(), Situation("dies", dies, question), timeout_s=30)
    (late,) = ask(LitFinetune(), Situation("hangs", hangs, question), timeout_s=0.5)

    assert (dead.verdict, late.verdict) == ("crashes", "crashes")


def test_the_table_has_a_row_for_each_question_and_counts_what_is_right() -> None:
    results = {
        ("too-late", "lit-finetune"): [Outcome("right", 0.0), Outcome("right", 0.0)],
        ("too-late", "by hand"): [
            Outcome("crashes", message="KeyError: `a|b`"),
            Outcome("wrong", 5),
        ],
        ("too-late", "finetuning-scheduler"): [Outcome("not installed")] * 2,
    }
    text = tables(results)

    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert rows[0][2:] == ["lit-finetune", "by hand", "finetuning-scheduler"]
    assert rows[2][2:] == ["right", "**crashes**", "not installed"]
    assert rows[3][2:] == ["right", "**wrong**: 5", "not installed"]
    assert rows[4][2:] == ["2 of 2", "0 of 2", "not installed"]
    assert "`KeyError: 'a|b'`" in text
    assert "## How each system was used" in as_markdown(results, seconds=1.0)
