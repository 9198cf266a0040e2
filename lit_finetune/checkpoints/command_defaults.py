"""What a checkpoint says for a command that says nothing else: its network, and its classes."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from lit_finetune.checkpoints.build_limits import limited_build
from lit_finetune.checkpoints.read import read_checkpoint
from lit_finetune.checkpoints.source import local_or_fetched
from lit_finetune.checkpoints.trusted_hparams import read_hparams, trusted_hparams

SPECIAL = ("best", "last", "hpc", "registry")
"""Checkpoints that Lightning finds itself."""
_MEASURED = ("image_size", "label_smoothing", "class_weights")


@dataclass(frozen=True, slots=True)
class CheckpointModel:
    """What a checkpoint says of the model of its run."""

    arguments: Mapping[str, Any]
    """Those that a command leaves out."""
    num_classes: int | None
    measured: Mapping[str, Any]
    """Those that change what is measured."""
    limited: Callable[[], AbstractContextManager[None]] = nullcontext
    """Within this a network is built as the checkpoint says, if that is no larger than can be."""

    def contradictions(self, model: Mapping[str, Any]) -> list[str]:
        """What a command says of the model otherwise, where that changes what is measured.

        >>> CheckpointModel({}, 2, {"image_size": 32}).contradictions({"image_size": 64})
        ['`image_size` is 64, and was 32 in the run']
        """
        return [
            f"`{key}` is {model[key]!r}, and was {value!r} in the run"
            for key, value in self.measured.items()
            if key in model and model[key] != value
        ]


def read_model(ckpt_path: str, *, said: Iterable[str], taken: Iterable[str]) -> CheckpointModel:
    """The arguments of the model that a checkpoint's run had, and how many classes it has.

    Args:
        ckpt_path: The checkpoint.
        said: The arguments that the command says itself.
        taken: The arguments that the model has.

    Raises:
        ValueError: The checkpoint names what only the user may name, or is none.
        FileNotFoundError: There is no such checkpoint.
    """
    file = local_or_fetched(ckpt_path)
    checkpoint = read_checkpoint(file, name=ckpt_path, skip_data=True)
    hparams = read_hparams(checkpoint)
    if "backbone" in hparams and hparams["backbone"] is None and "backbone" not in said:
        raise ValueError(
            f"{ckpt_path} is of a network that was passed as a module, or built from objects: name"
            " it, `--model.backbone my_package.MyNet`."
        )
    trusted = trusted_hparams(hparams, said=said, taken=taken)
    number = hparams.get("num_classes")
    return CheckpointModel(
        arguments={key: value for key, value in trusted.items() if key != "num_classes"},
        num_classes=number if isinstance(number, int) and number > 1 else None,
        measured={key: hparams[key] for key in _MEASURED if key in hparams},
        limited=partial(limited_build, hparams, checkpoint["state_dict"], said=list(said)),
    )
