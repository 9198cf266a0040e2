"""What a run of a classifier cannot do without, whatever hooks its subclass has."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lit_finetune.checkpoints.earlier_runs import refuse_missing_last
from lit_finetune.classes.data import refuse_other_validation
from lit_finetune.loading.few_pictures import refuse_few_images_in_loaders
from lit_finetune.loading.loader_order import make_reloaded_repeatable
from lit_finetune.training.class_matching import refuse_unread_checkpoint
from lit_finetune.training.own_layers import OwnLayers
from lit_finetune.training.random_backbone import RandomLayers, warning_of_random
from lit_finetune.training.resumed_data import (
    DATA_KEY,
    augmentation_line,
    augmentation_of,
    finished_line,
)


class RunHooks(Callback):
    """Begin a classifier's run, and match its head with the data where both are known.

    A callback, since a subclass may have hooks of its own without calling those of the classifier.

    Args:
        classifier: A `ClassifierSteps`, which stands above this module. Whatever else its Trainer
            runs is left alone.
    """

    def __init__(self, classifier: Any) -> None:
        self.classifier = classifier
        self._layers: OwnLayers | None = None
        self._has_started = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._runs(pl_module):
            refuse_few_images_in_loaders(trainer)
            self.classifier.begin_run(stage)
            self.classifier.has_begun = True

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._runs(pl_module) and not trainer.strategy.restore_checkpoint_after_setup:
            _match(self.classifier)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._runs(pl_module):
            return
        _match(self.classifier, trainer.train_dataloader)
        classes = self.classifier.data_classes
        refuse_other_validation(trainer.val_dataloaders, trainer.train_dataloader, classes)
        self._layers = OwnLayers(self.classifier)
        self._has_started = True

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._layers and self._runs(pl_module):
            self._layers.look()

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        if self._runs(pl_module) and isinstance(loss, Tensor) and not loss.requires_grad:
            raise ValueError(
                "The loss does not depend on any parameter that trains: all are frozen, or `loss`"
                " or `forward` cuts it off, by `detach()`, `torch.no_grad()` or a plain number."
            )

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        if self._layers and self._runs(pl_module):
            self._layers.look_before_step()

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self._runs(pl_module):
            return
        if augmentation := augmentation_of(getattr(trainer, "datamodule", None)):
            checkpoint[DATA_KEY] = {"train_augmentation": augmentation}
        if self._layers:
            self._layers.keep_networks()

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        line = augmentation_line(checkpoint, getattr(trainer, "datamodule", None))
        if line and self._runs(pl_module) and trainer.state.fn == "fit":
            rank_zero_warn(line)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._layers and self._runs(pl_module):
            self._layers.keep_networks()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._layers and self._runs(pl_module):
            self._layers.keep_networks()
        self._layers = None

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if self._runs(pl_module) and not self._has_started and trainer.ckpt_path and step:
            epochs = trainer.fit_loop.epoch_progress.current.completed
            rank_zero_info(finished_line(step, epochs, trainer.max_epochs))
        self._has_started = False

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._runs(pl_module):  # whatever has frozen it, in whichever hook
            self.classifier.warn_of_random_backbone(is_last=True)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._runs(pl_module):
            make_reloaded_repeatable(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # In a training the labels are those of its own pictures: the sanity check knows them not.
        if self._runs(pl_module) and trainer.state.fn == "validate":
            self.classifier.tell_new_head()  # before its outputs are put into another order
            _match(self.classifier, trainer.val_dataloaders)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._runs(pl_module):
            self.classifier.tell_new_head()
            _match(self.classifier, trainer.test_dataloaders)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._runs(pl_module):
            refuse_unread_checkpoint(pl_module, trainer.ckpt_path)
            self.classifier.tell_new_head(refuse=True)

    def _runs(self, module: LightningModule) -> bool:
        return module is self.classifier


def join_run(classifier: Any, trainer: Any) -> None:
    """Let a Trainer call what a classifier needs, in the place of the one that it ran before.

    Args:
        classifier: A `ClassifierSteps`.
        trainer: Its Trainer; it may run another module, of which the classifier is a part.
    """
    classifier.has_begun = False
    if getattr(trainer, "lightning_module", None) is not classifier:
        return
    refuse_missing_last(trainer, classifier)
    present = [each for each in trainer.callbacks if isinstance(each, RunHooks)]
    for each in present:
        each.classifier = classifier
    if not present:
        trainer.callbacks.append(RunHooks(classifier))


def _match(classifier: Any, loaders: Any = None) -> None:
    refuse_unread_checkpoint(classifier, classifier.trainer.ckpt_path)
    classifier.match_data_classes(loaders)


def warn_of_random(random: RandomLayers, model: Any, is_probed: bool) -> RandomLayers | None:
    """Warn of a module's random layers, if that is due; what there is to warn of later."""
    optimizers = model.trainer.optimizers
    told = warning_of_random(random, model, is_probed=is_probed, optimizers=optimizers)
    if told:
        rank_zero_warn(told)
    return None if told else random
