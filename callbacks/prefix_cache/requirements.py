"""Which runs can train from cached block inputs."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from lit_finetune.classifier import FinetuneClassifier
from lit_finetune.distributed.supported_strategies import refuse_unsupported
from lit_finetune.distributed.wrapping import shards_parameters

_TRANSFER_HOOKS = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)


def check_run(trainer: Trainer, pl_module: LightningModule) -> FinetuneClassifier:
    """The module, if it can be trained from cached block inputs.

    Raises:
        ValueError: It cannot; says why.
    """
    if shards_parameters(trainer.strategy):
        raise ValueError("FrozenPrefixCache needs whole parameters: use one device, or 'ddp'.")
    if not isinstance(pl_module, FinetuneClassifier):
        name = type(pl_module).__name__
        raise ValueError(f"FrozenPrefixCache trains a FinetuneClassifier, but this is a {name}.")
    if any(isinstance(each, ModelPruning) for each in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            "FrozenPrefixCache cannot be used beside ModelPruning: it puts masks on frozen weights"
            " too, and changes them again and again. Leave one of them out."
        )
    _refuse_changed_inputs(trainer, pl_module)
    refuse_unsupported(trainer.strategy)
    if isinstance(trainer.strategy, FSDPStrategy):
        raise ValueError("FrozenPrefixCache is not supported under FSDPStrategy: use 'ddp'.")
    return pl_module


def _refuse_changed_inputs(trainer: Trainer, module: FinetuneClassifier) -> None:
    """Refuse what works on images between the loader and the network."""
    for name in ("mixup_alpha", "cutmix_alpha"):
        if module.hparams.get(name):
            raise ValueError(
                f"FrozenPrefixCache cannot be used with `{name}`: it mixes the pictures of each"
                " batch anew before they reach the network."
            )
    if type(module).forward is not FinetuneClassifier.forward:
        raise ValueError(
            f"FrozenPrefixCache cannot be used with {type(module).__name__}.forward: it supports"
            " the forward of FinetuneClassifier alone."
        )
    datamodule = getattr(trainer, "datamodule", None)
    for owner in filter(None, (module, datamodule)):
        for hook in _TRANSFER_HOOKS:
            if is_overridden(hook, owner):
                raise ValueError(
                    f"FrozenPrefixCache cannot be used with {type(owner).__name__}.{hook}: the hook"
                    " would receive cached block inputs instead of pictures."
                )
