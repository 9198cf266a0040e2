"""The hooks that a classifier needs in any run, also if a subclass overrides its own."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lit_finetune.checkpoints.find_checkpoints import refuse_missing_last
from lit_finetune.classes.data import refuse_other_validation
from lit_finetune.loading.few_images import refuse_few_images_in_loaders
from lit_finetune.loading.loader_order import make_reloaded_repeatable
from lit_finetune.training.class_matching import refuse_unread_checkpoint
from lit_finetune.training.layer_checks import LayerChecks
from lit_finetune.training.monitors import may_log_later, monitors_of, unlogged_line
from lit_finetune.training.nonfinite_steps import stop_or_skip_nonfinite
from lit_finetune.training.random_backbone import RandomLayers, random_layers_warning
from lit_finetune.training.resume_messages import (
    DATA_KEY,
    augmentation_line,
    augmentation_of,
    finished_line,
)
from lit_finetune.training.run_steps import (
    begin_batch,
    begin_epoch,
    begin_fit,
    begin_training,
    finish_epoch,
)

_IS_CHECKOUT = Path(__file__).parents[1].joinpath("callbacks.py").exists()
_KNOWN_PACKAGES = ("lightning", "lit_finetune", *(("callbacks",) if _IS_CHECKOUT else ()))
"""Lightning's and ours; in a checkout our callbacks are in a package of their own."""


class RunHooks(Callback):
    """Starts a classifier's run, and matches its head with the data when both are known.

    A callback, since a subclass may override the classifier's hooks without calling them.

    Args:
        classifier: A `ClassifierSteps`; other modules of its Trainer are ignored.
    """

    def __init__(self, classifier: Any) -> None:
        self.classifier = classifier
        self._layers: LayerChecks | None = None
        self._has_started = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._runs(pl_module):
            refuse_few_images_in_loaders(trainer)
            self.classifier.begin_run(stage)
            self.classifier.has_begun = True

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._runs(pl_module):
            return
        if not trainer.strategy.restore_checkpoint_after_setup:
            _match(self.classifier)
        begin_fit(self.classifier)

    @override
    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._runs(pl_module):
            _check_monitors(trainer, pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._runs(pl_module):
            return
        _match(self.classifier, trainer.train_dataloader)
        classes = self.classifier.data_classes
        refuse_other_validation(trainer.val_dataloaders, trainer.train_dataloader, classes)
        self._layers = LayerChecks(self.classifier)
        self._has_started = True
        begin_training(self.classifier)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._layers and self._runs(pl_module):
            self._layers.check_before_batch()
        if self._runs(pl_module):
            begin_batch(self.classifier, batch_idx)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        if self._runs(pl_module) and isinstance(loss, Tensor) and not loss.requires_grad:
            raise ValueError(
                "The loss does not depend on any parameter that trains: all are frozen, or `loss`"
                " or `forward` cuts it off, by `detach()`, `torch.no_grad()` or a plain number."
            )

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._runs(pl_module):  # a subclass may override `backward`
            stop_or_skip_nonfinite(self.classifier)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        if self._runs(pl_module):  # in manual optimization it may call `loss.backward()`
            stop_or_skip_nonfinite(self.classifier)
        if self._layers and self._runs(pl_module):
            self._layers.check_before_step()

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self._runs(pl_module):
            return
        self.classifier.save_state(checkpoint)
        if augmentation := augmentation_of(getattr(trainer, "datamodule", None)):
            checkpoint[DATA_KEY] = {"train_augmentation": augmentation}
        if self._layers:
            self._layers.restore_in_checkpoint(checkpoint["state_dict"])

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
            self._layers.restore_networks()
        if self._runs(pl_module):
            finish_epoch(self.classifier)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._layers and self._runs(pl_module):
            self._layers.restore_networks()
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
            self.classifier.warn_random_backbone(is_last=True)
            stop_or_skip_nonfinite(self.classifier, is_before_step=False)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._runs(pl_module):
            make_reloaded_repeatable(trainer)
            begin_epoch(self.classifier)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # In training, labels are those of the training data, which the sanity check does not know.
        if self._runs(pl_module) and trainer.state.fn == "validate":
            self.classifier.report_new_head()  # before its outputs are reordered
            _match(self.classifier, trainer.val_dataloaders)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._runs(pl_module):
            self.classifier.report_new_head()
            _match(self.classifier, trainer.test_dataloaders)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._runs(pl_module):
            refuse_unread_checkpoint(pl_module, trainer.ckpt_path)
            self.classifier.report_new_head(refuse=True)

    def _runs(self, module: LightningModule) -> bool:
        return module is self.classifier


def has_run_hooks(classifier: Any) -> bool:
    """Whether `RunHooks` work for a classifier; a search for a learning rate removes callbacks."""
    trainer = classifier._trainer
    return (
        trainer is not None
        and trainer.lightning_module is classifier
        and any(isinstance(each, RunHooks) for each in trainer.callbacks)
    )


def attach_run_hooks(classifier: Any, trainer: Any) -> None:
    """Let a Trainer call a classifier's hooks, instead of those of an earlier one.

    Args:
        classifier: A `ClassifierSteps`.
        trainer: Its Trainer; it may run another module that contains the classifier.
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


def _check_monitors(trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse a monitored metric that nobody logs; warn of one that user code may log later.

    Raises:
        ValueError: The module and all callbacks are Lightning's and ours.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    line = unlogged_line(monitors_of(callbacks), trainer.callback_metrics)
    if line is None:
        return
    if may_log_later(map(type, (pl_module, *callbacks)), _KNOWN_PACKAGES):
        rank_zero_warn(line)
    else:
        raise ValueError(line)


def _match(classifier: Any, loaders: Any = None) -> None:
    refuse_unread_checkpoint(classifier, classifier.trainer.ckpt_path)
    classifier.match_data_classes(loaders)


def warn_random_layers(random: RandomLayers, model: Any, is_probed: bool) -> RandomLayers | None:
    """Warn of a module's frozen random layers; return the layers if there was no warning yet."""
    optimizers = model.trainer.optimizers
    message = random_layers_warning(random, model, is_probed=is_probed, optimizers=optimizers)
    if message:
        rank_zero_warn(message)
    return None if message else random
