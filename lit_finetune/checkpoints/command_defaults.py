"""The arguments that a command takes from a checkpoint by default: its network and classes."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from lit_finetune.checkpoints.build_limits import limited_build
from lit_finetune.checkpoints.read import read_checkpoint
from lit_finetune.checkpoints.source import resolve_checkpoint
from lit_finetune.checkpoints.trusted_hparams import read_hparams, trusted_hparams

LIGHTNING_CHECKPOINTS = ("best", "last", "hpc", "registry")
"""Names of checkpoints that Lightning resolves itself."""
_EVAL_ARGUMENTS = ("image_size", "label_smoothing", "class_weights")


@dataclass(frozen=True, slots=True)
class CheckpointModel:
    """The model's arguments in a checkpoint."""

    arguments: Mapping[str, Any]
    """The arguments for a command that does not give them."""
    num_classes: int | None
    eval_arguments: Mapping[str, Any]
    """The arguments that change the results of an evaluation."""
    build_context: Callable[[], AbstractContextManager[None]] = nullcontext
    """The context for building the checkpoint's network, which limits its memory."""

    def contradictions(self, model: Mapping[str, Any]) -> list[str]:
        """A command's arguments that differ from the run's and change the results of an evaluation.

        >>> CheckpointModel({}, 2, {"image_size": 32}).contradictions({"image_size": 64})
        ['`image_size` is 64, and was 32 in the run']
        """
        return [
            f"`{key}` is {model[key]!r}, and was {value!r} in the run"
            for key, value in self.eval_arguments.items()
            if key in model and model[key] != value
        ]


def read_model(
    ckpt_path: str, *, overrides: Iterable[str], accepted: Iterable[str]
) -> CheckpointModel:
    """The model's arguments and number of classes in a checkpoint.

    Args:
        ckpt_path: The checkpoint.
        overrides: The names of the arguments that the command gives.
        accepted: The names of the model's arguments.

    Raises:
        ValueError: The file is no checkpoint, or names something that only the user may name.
        FileNotFoundError: There is no such checkpoint.
    """
    file = resolve_checkpoint(ckpt_path)
    checkpoint = read_checkpoint(file, name=ckpt_path, skip_data=True)
    hparams = read_hparams(checkpoint)
    if "backbone" in hparams and hparams["backbone"] is None and "backbone" not in overrides:
        raise ValueError(
            f"{ckpt_path} is of a network that was passed as a module, or built from objects: name"
            " it, `--model.backbone my_package.MyNet`."
        )
    trusted = trusted_hparams(hparams, overrides=overrides, accepted=accepted)
    num_classes = hparams.get("num_classes")
    return CheckpointModel(
        arguments={key: value for key, value in trusted.items() if key != "num_classes"},
        num_classes=num_classes if isinstance(num_classes, int) and num_classes > 1 else None,
        eval_arguments={key: hparams[key] for key in _EVAL_ARGUMENTS if key in hparams},
        build_context=partial(
            limited_build, hparams, checkpoint["state_dict"], overrides=list(overrides)
        ),
    )
