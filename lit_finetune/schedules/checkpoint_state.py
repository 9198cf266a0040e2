"""What a checkpoint says of a schedule, held against the schedule of the run that resumes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_finetune.files.torch_files import tensors_in
from lit_finetune.schedules.plan import Plan
from lit_finetune.schedules.triggers import Progress, Stall


def save_progress(plan: Plan, progress: Progress, *, train_bn: bool) -> dict[str, Any]:
    """What a run must know to go on from here, as plain data."""
    plateau = plan.watched(progress.phase)
    left_out = {"left_out": list(plan.left_out)} if plan.left_out else {}
    return left_out | {
        "phase": progress.phase,
        "phases": plan.to_list(progress.phase),
        "train_bn": train_bn,
        "progress": progress.to_dict(),
        "watched": plateau and [plateau.monitor, plateau.mode],
    }


def load_progress(plan: Plan, state: Mapping[str, Any] | None, *, train_bn: bool) -> Progress:
    """How far the run of a checkpoint had come.

    The phases that lie behind must be the same ones; what comes later may change. A metric that is
    watched instead of another one is watched from the start.

    Args:
        plan: Of the run that resumes.
        state: What `save_progress` gave, if anything.
        train_bn: Of the run that resumes.

    Raises:
        ValueError: There is no such state, or it is of another schedule.
    """
    if not state:
        raise ValueError(
            "The checkpoint was written without FreezeUnfreezeCallback, so its optimizer does"
            " not fit the schedule. To start from its weights alone, pass it as `weights`."
        )
    if not _is_whole(state):
        raise ValueError(
            "What the checkpoint says of its schedule is damaged, or was changed. To start from its"
            " weights alone, pass it as `weights`."
        )
    if state["train_bn"] != train_bn:
        raise ValueError(
            f"The checkpoint was written with train_bn={state['train_bn']}, but now it is"
            f" {train_bn}. Resume with the same value."
        )
    ours = plan.to_list(state["phase"])
    if ours != state["phases"]:
        then, now = (", ".join(map(_begin, phases)) for phases in (state["phases"], ours))
        raise ValueError(
            "The checkpoint was written under another schedule: its phases so far began at"
            f" {then}; those of this run at {now}, or with other parameters or rates."
            " Resume with the same schedule up to this point, or start anew from its weights"
            " alone, passed as `weights`."
        )
    progress = Progress.from_dict(state["progress"])
    plateau = plan.watched(progress.phase)
    is_same = plateau and [plateau.monitor, plateau.mode] == state["watched"]
    return progress if is_same else replace(progress, stall=Stall())


def _is_whole(state: Mapping[str, Any]) -> bool:
    """Whether a state is made as `save_progress` makes it, but for what is compared with ours."""
    progress, phase = state.get("progress"), state.get("phase")
    if not isinstance(progress, Mapping) or not isinstance(progress.get("stall"), Mapping):
        return False
    began, stall = progress.get("began"), progress["stall"]
    if not isinstance(began, list) or not all(isinstance(at, list) for at in began):
        return False
    counts = [phase, stall.get("count"), *(number for at in began for number in at)]
    return (
        isinstance(state.get("train_bn"), bool)
        and all(type(count) is int and count >= 0 for count in counts)
        and all(_is_measured(stall.get(key)) for key in ("best", "mark"))
        and next(tensors_in([state.get("phases"), state.get("watched")]), None) is None
    )


def _is_measured(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def refuse_lost_schedule(trainer: Any, checkpoint: Mapping[str, Any]) -> None:
    """Refuse to resume a run in phases as one without: its optimizer holds groups of its own.

    Args:
        trainer: It resumes, evaluates or predicts; None where nothing but a module is loaded.
        checkpoint: What it has read.

    Raises:
        ValueError: Nobody in the Trainer goes on with the checkpoint's schedule.
    """
    if trainer is None or trainer.state.fn != "fit":
        return
    present = {callback.state_key for callback in trainer.callbacks}
    for key, state in checkpoint.get("callbacks", {}).items():
        if key not in present and "phases" in state and "progress" in state:
            raise ValueError(
                f"The checkpoint was written under a schedule, in its phase {state['phase'] + 1},"
                f" but this Trainer has no {key}. Resume with the same schedule, or start anew from"
                " its weights alone, passed as `weights`."
            )


def _begin(phase: Mapping[str, Any]) -> str:
    """When a phase of a checkpoint began: `epoch 2`."""
    return next(f"{key} {value}" for key, value in phase.items())
