"""What a run of a classifier cannot do without, whatever hooks its subclass has."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lit_finetune.class_matching import refuse_unread_checkpoint
from lit_finetune.data_classes import refuse_other_validation


class RunHooks(Callback):
    """Begin a classifier's run, and match its head with the data where both are known.

    A callback, since a subclass may have hooks of its own without calling those of the classifier.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        _classifier(pl_module).begin_run(stage)
        _classifier(pl_module).has_begun = True

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.strategy.restore_checkpoint_after_setup:
            _match(pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _match(pl_module, trainer.train_dataloader)
        classes = _classifier(pl_module).data_classes
        refuse_other_validation(trainer.val_dataloaders, trainer.train_dataloader, classes)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # In a training the labels are those of its own pictures: the sanity check knows them not.
        if trainer.state.fn == "validate":
            _match(pl_module, trainer.val_dataloaders)
            _classifier(pl_module).tell_new_head()

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _match(pl_module, trainer.test_dataloaders)
        _classifier(pl_module).tell_new_head()

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_unread_checkpoint(pl_module, trainer.ckpt_path)
        _classifier(pl_module).tell_new_head(refuse=True)


def join_run(module: Any, trainer: Any) -> None:
    """Let a Trainer call what its classifier needs, unless it does already.

    Args:
        module: The classifier.
        trainer: Its Trainer; it may run another module, of which the classifier is a part.
    """
    module.has_begun = False
    if getattr(trainer, "lightning_module", None) is not module:
        return
    if not any(isinstance(callback, RunHooks) for callback in trainer.callbacks):
        trainer.callbacks.append(RunHooks())


def _classifier(module: Any) -> Any:
    """A `ClassifierSteps`, which stands above this module."""
    return module


def _match(module: Any, loaders: Any = None) -> None:
    refuse_unread_checkpoint(module, module.trainer.ckpt_path)
    module.match_data_classes(loaders)
