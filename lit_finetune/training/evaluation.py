"""Count the metrics of validation and test images, and log them at the end of an epoch."""

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torchmetrics import MetricCollection
from torchmetrics.wrappers import ClasswiseWrapper
from typing_extensions import override

from lit_finetune.training.batches import check_loss
from lit_finetune.training.eval_metrics import MeanLoss
from lit_finetune.training.metric_values import describe, scalars_by_name
from lit_finetune.training.repeated_samples import num_repeated

Stage = Literal["val", "test"]
Loaders = dict[tuple[Stage, int], tuple[MeanLoss, MetricCollection]]
"""The metrics of each loader except the first one, which has the module's own."""


@torch.compiler.disable  # type: ignore[untyped-decorator]  # by torch
def count_evaluation(
    module: Any, stage: Stage, logits: Tensor, target: Any, *, batch_idx: int, loader: int
) -> None:
    """Count a batch of validation or testing; each image has the same weight.

    Args:
        module: The classifier; its `loss` is measured, and its `val_metrics` or `test_metrics`.
        stage: `val` or `test`, the prefix of the names.
        logits: (N, classes).
        target: The targets of `loss` and the metrics.
        batch_idx: The number of the batch.
        loader: The number of its loader.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    trainer = module.trainer
    if trainer.world_size > 1 and num_repeated(_loaders(trainer, stage)[loader], batch_idx):
        rows = len(logits) - num_repeated(_loaders(trainer, stage)[loader], batch_idx)
        logits = logits[:rows]
        target = tree_map_only(Tensor, lambda tensor: tensor[:rows], target)
    if not len(logits):
        return
    loss, metrics = metrics_for_loader(module, stage, loader)
    # A copy: a subclass's loss may work in place.
    found = check_loss(module.loss(logits.clone(), target))
    loss.update(found, module.loss_weight(logits, target))
    metrics.update(logits, target)


def metrics_for_loader(module: Any, stage: Stage, loader: int) -> tuple[MeanLoss, MetricCollection]:
    """The metrics of a loader: the module's own, or copies of them."""
    own_metrics = getattr(module, f"{stage}_loss"), getattr(module, f"{stage}_metrics")
    if loader == 0:
        return own_metrics
    copies: Loaders = module.loader_measures
    if (stage, loader) not in copies:
        copies[stage, loader] = own_metrics[0].clone(), own_metrics[1].clone()
        for copy in copies[stage, loader]:
            copy.reset()
    return copies[stage, loader]


class LogEvaluation(Callback):
    """Logs the metrics: with one loader when the epoch ends, with several when each has ended.

    A callback, since a subclass of the classifier may override its hooks without calling them. The
    values are the same in all processes.

    Args:
        classifier: The classifier; other modules of its Trainer are ignored.
    """

    def __init__(self, classifier: LightningModule) -> None:
        self.classifier = classifier
        self._unlogged: set[int] = set()

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, "val")

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, "test")

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._end_batch(trainer, pl_module, "val", batch_idx, dataloader_idx)

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._end_batch(trainer, pl_module, "test", batch_idx, dataloader_idx)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer, pl_module, "val")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer, pl_module, "test")

    def _begin(self, trainer: Trainer, module: Any, stage: Stage) -> None:
        is_own = module is self.classifier
        self._unlogged = set(range(len(_num_batches(trainer, stage)))) if is_own else set()
        for loader in self._unlogged:
            for measure in metrics_for_loader(module, stage, loader):
                measure.reset()

    def _end_batch(
        self, trainer: Trainer, module: Any, stage: Stage, batch_idx: int, loader: int
    ) -> None:
        num_batches = _num_batches(trainer, stage)
        if (
            loader in self._unlogged
            and len(num_batches) > 1
            and batch_idx + 1 == num_batches[loader]
        ):
            self._unlogged.discard(loader)
            _log(module, stage, loader, suffix=f"/dataloader_idx_{loader}", is_added=True)

    def _end(self, trainer: Trainer, module: Any, stage: Stage) -> None:
        is_one = len(_num_batches(trainer, stage)) == 1
        for loader in sorted(self._unlogged):
            suffix = "" if is_one else f"/dataloader_idx_{loader}"
            _log(module, stage, loader, suffix=suffix, is_added=False)
        self._unlogged = set()


def log_evaluations(classifier: LightningModule, trainer: Any) -> None:
    """Let a Trainer log a classifier's metrics, instead of those of an earlier one."""
    present = [each for each in trainer.callbacks if isinstance(each, LogEvaluation)]
    for each in present:
        each.classifier = classifier
    if not present:
        trainer.callbacks.append(LogEvaluation(classifier))


def _log(module: Any, stage: Stage, loader: int, *, suffix: str, is_added: bool) -> None:
    """Log the values of a loader.

    Args:
        module: The classifier.
        stage: The prefix of the names.
        loader: The number of the loader.
        suffix: The end of the names.
        is_added: Whether Lightning adds the suffix to the names.
    """
    loss, metrics = metrics_for_loader(module, stage, loader)
    for wrapper in metrics.modules():
        if isinstance(wrapper, ClasswiseWrapper) and wrapper.labels is None:
            wrapper.labels = list(module.classes)
    values = {f"{stage}/loss": loss.compute(), **metrics.compute()}
    scalars, others = scalars_by_name(values, module.classes)
    for name, value in scalars.items():
        module.log(
            name if is_added else name + suffix,
            value,
            prog_bar=name in (f"{stage}/loss", f"{stage}/acc"),
            batch_size=1,
            add_dataloader_idx=is_added,
            # All processes have the same value; the maximum keeps it bit for bit.
            sync_dist=True,
            reduce_fx="max",
        )
    module.metric_values.update({name + suffix: value for name, value in values.items()})
    _report(module, stage, suffix, scalars, others)


def _report(
    module: Any, stage: Stage, suffix: str, scalars: dict[str, Tensor], others: dict[str, Any]
) -> None:
    """Report values that are not logged, once, and warn if the loss is not finite."""
    for name in others.keys() - module.reported_values:
        rank_zero_info(
            f"{name} is {describe(others[name])}, which no logger takes for a number: it is in"
            f" `metric_values[{name + suffix!r}]` of the model."
        )
    module.reported_values.update(others)
    loss = scalars[f"{stage}/loss"]
    if not loss.isfinite():
        kind = {"val": "validation", "test": "test"}[stage]
        rank_zero_warn(
            f"{stage}/loss{suffix} is {loss.item()} in epoch {module.current_epoch}: the loss of a"
            f" {kind} picture at least is not finite. Its pixels, or the network's weights or"
            " statistics, hold such numbers, or the network's precision is too low for its logits."
        )


def _loaders(trainer: Any, stage: Stage) -> list[Any]:
    return tree_leaves(trainer.val_dataloaders if stage == "val" else trainer.test_dataloaders)


def _num_batches(trainer: Any, stage: Stage) -> list[int | float]:
    if trainer.sanity_checking:
        return trainer.num_sanity_val_batches
    return trainer.num_val_batches if stage == "val" else trainer.num_test_batches
