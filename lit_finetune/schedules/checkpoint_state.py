"""The schedule's state in a checkpoint, checked against the schedule of the run that resumes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_finetune.files.torch_files import named_tensors
from lit_finetune.schedules.plan import Plan
from lit_finetune.schedules.triggers import Progress, Stall


def save_progress(plan: Plan, progress: Progress, *, train_bn: bool) -> dict[str, Any]:
    """The state that a run needs to resume from here, as plain data."""
    plateau = plan.plateau_at(progress.phase)
    names = plan.unoptimized_networks
    left_out = {"left_out": list(names)} if names else {}
    return left_out | {
        "phase": progress.phase,
        "phases": plan.to_list(progress.phase),
        "train_bn": train_bn,
        "progress": progress.to_dict(),
        "watched": plateau and [plateau.monitor, plateau.mode],
    }


def load_progress(plan: Plan, state: Mapping[str, Any] | None, *, train_bn: bool) -> Progress:
    """The progress of the run that wrote a checkpoint.

    Its phases so far must be those of this run; later ones may differ. If another metric is watched
    now than before, its stall is counted from zero.

    Args:
        plan: Of the run that resumes.
        state: From `save_progress`; None if the checkpoint has none.
        train_bn: Of the run that resumes.

    Raises:
        ValueError: There is no state, it is damaged, or it belongs to another schedule.
    """
    if not state:
        raise ValueError(
            "The checkpoint was written without FreezeUnfreezeCallback, so its optimizer does"
            " not fit the schedule. To start from its weights alone, pass it as `weights`."
        )
    if not _is_valid(state):
        raise ValueError(
            "The checkpoint's state of its schedule is damaged or was edited. To start from its"
            " weights alone, pass it as `weights`."
        )
    if state["train_bn"] != train_bn:
        raise ValueError(
            f"The checkpoint was written with train_bn={state['train_bn']}, but now it is"
            f" {train_bn}. Resume with the same value."
        )
    planned = plan.to_list(state["phase"])
    if planned != state["phases"]:
        saved, current = (
            ", ".join(map(_start_text, phases)) for phases in (state["phases"], planned)
        )
        raise ValueError(
            "The checkpoint was written under another schedule: its phases so far began at"
            f" {saved}; those of this run at {current}, or with other parameters or rates."
            " Resume with the same schedule up to this point, or start a new run from its weights"
            " alone, passed as `weights`."
        )
    progress = Progress.from_dict(state["progress"])
    plateau = plan.plateau_at(progress.phase)
    is_same = plateau and [plateau.monitor, plateau.mode] == state["watched"]
    return progress if is_same else replace(progress, stall=Stall())


def _is_valid(state: Mapping[str, Any]) -> bool:
    """Whether a state has the form that `save_progress` writes; its phases are compared later."""
    progress, phase = state.get("progress"), state.get("phase")
    if not isinstance(progress, Mapping) or not isinstance(progress.get("stall"), Mapping):
        return False
    starts, stall = progress.get("began"), progress["stall"]
    if not isinstance(starts, list) or not all(isinstance(start, list) for start in starts):
        return False
    counts = [phase, stall.get("count"), *(number for start in starts for number in start)]
    return (
        isinstance(state.get("train_bn"), bool)
        and all(type(count) is int and count >= 0 for count in counts)
        and all(_is_number_or_none(stall.get(key)) for key in ("best", "mark"))
        and next(named_tensors([state.get("phases"), state.get("watched")]), None) is None
    )


def _is_number_or_none(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def refuse_lost_schedule(trainer: Any, checkpoint: Mapping[str, Any]) -> None:
    """Refuse to resume a run in phases without its schedule: its optimizer has groups per phase.

    Args:
        trainer: It resumes, evaluates or predicts; None if a module is loaded without one.
        checkpoint: The checkpoint that it has read.

    Raises:
        ValueError: The Trainer has no callback that continues the checkpoint's schedule.
    """
    if trainer is None or trainer.state.fn != "fit":
        return
    present = {callback.state_key for callback in trainer.callbacks}
    for key, state in checkpoint.get("callbacks", {}).items():
        if key not in present and "phases" in state and "progress" in state:
            raise ValueError(
                f"The checkpoint was written under a schedule, in its phase {state['phase'] + 1},"
                f" but this Trainer has no {key}. Resume with the same schedule, or start a new run"
                " from its weights alone, passed as `weights`."
            )


def _start_text(phase: Mapping[str, Any]) -> str:
    """The start of a phase in a checkpoint, in words: `epoch 2`."""
    return next(f"{key} {value}" for key, value in phase.items())
