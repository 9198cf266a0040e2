"""The steps that train, evaluate and resume a classifier with any network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from typing_extensions import override

from lit_finetune.classes.head_classes import HeadClasses, user_classes
from lit_finetune.distributed.supported_strategies import refuse_fsdp1_options, refuse_fsdp1_rewrap
from lit_finetune.heads.class_outputs import update_class_names
from lit_finetune.images.data_config import DataConfig, eval_transform
from lit_finetune.images.read import as_rgb
from lit_finetune.modules.eval_mode import eval_mode
from lit_finetune.resuming.checkpoint_io import use_atomic_checkpoints
from lit_finetune.resuming.restore_errors import report_damaged_checkpoints
from lit_finetune.resuming.run_state import RunState, load_run, save_run
from lit_finetune.schedules.checkpoint_state import refuse_lost_schedule
from lit_finetune.training.batches import check_loss, images_of, logits_for, split_batch
from lit_finetune.training.class_matching import (
    load_class_weights,
    load_classes,
    match_head,
    prepare_data_classes,
)
from lit_finetune.training.eval_metrics import (
    MeanLoss,
    as_collection,
    classification_metrics,
    is_class_index,
    loss_weight,
    probabilities,
)
from lit_finetune.training.evaluation import Loaders, Stage, count_evaluation, log_evaluations
from lit_finetune.training.inference_mode import clone_inference_tensors
from lit_finetune.training.labels import labels_of, refuse_unmeasurable
from lit_finetune.training.mixup import make_mixing
from lit_finetune.training.nonfinite import LossWatch, StepPosition, refuse_nonfinite_weights
from lit_finetune.training.nonfinite_steps import stop_or_skip_nonfinite
from lit_finetune.training.random_backbone import RandomLayers
from lit_finetune.training.run_hooks import attach_run_hooks, has_run_hooks, warn_random_layers
from lit_finetune.training.run_steps import (
    begin_batch,
    begin_epoch,
    begin_fit,
    begin_training,
    finish_epoch,
)
from lit_finetune.training.train_metrics import TrainingMetrics
from lit_finetune.weights.own_checkpoint import CHECKPOINT_KEY


class ClassifierSteps(LightningModule):
    """The steps and metrics of a classifier, and its state in checkpoints.

    A subclass defines `forward`, from images (N, C, H, W) to logits (N, num_classes), a `backbone`
    whose head is `head_name`, and has the hyper-parameters `label_smoothing`, `class_weights`,
    `mixup_alpha` and `cutmix_alpha`.
    """

    backbone: nn.Module
    head_name: str
    class_weights: Tensor | None
    data_config: DataConfig
    head_classes: HeadClasses
    initial_head: Mapping[str, Tensor] | None = None
    """The initial state of the head, until it is known whether a checkpoint's head is kept."""
    _auxiliary: tuple[tuple[float, Tensor], ...] = ()
    """The auxiliary logits of the last `forward`, each with the weight of its loss."""
    _random_backbone: RandomLayers | None = None
    """The layers with random weights, until it is known whether they train."""

    def __init__(self) -> None:
        super().__init__()
        self.has_own_loss = type(self).loss is not ClassifierSteps.loss
        self._run_seed: int | None = None
        self._resumed: RunState | None = None
        self._scores = TrainingMetrics()
        self.loss_watch = LossWatch()
        self.metric_values: dict[str, Any] = {}
        """All values of the last validation and test, also those that are not logged."""
        self.reported_values: set[str] = set()
        self.loader_measures: Loaders = {}
        self.data_classes: list[str] | None = None
        self.is_matched = self.is_resumed = self.has_loaded_checkpoint = self.has_begun = False

    @property
    def trainer(self) -> Trainer:
        """The Trainer that runs this module."""
        return super().trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        vars(LightningModule)["trainer"].fset(self, trainer)
        attach_run_hooks(self, trainer)

    @property
    def num_classes(self) -> int:
        """The number of classes of the head."""
        return len(self.head_classes.names)

    @property
    def classes(self) -> list[str]:
        """The class names of the head's outputs; their numbers if they have no names.

        Set it to name the outputs, in their order.
        """
        return list(self.head_classes.names)

    @classes.setter
    def classes(self, names: Sequence[str]) -> None:
        self.name_outputs(user_classes(names, self.head_classes))

    @property
    def stops_if_nonfinite(self) -> bool:
        """Whether a loss that is not finite ends the training, instead of skipping its step."""
        return bool(self.hparams.get("error_if_nonfinite", True))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (N, classes) against labels (N), or probabilities like the logits.

        Override it for targets of any other kind that a loader returns with the images.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(
            logits,
            target.to(logits.dtype) if target.is_floating_point() else target,
            weight=None if self.class_weights is None else self.class_weights.to(logits.dtype),
            label_smoothing=self.hparams["label_smoothing"],
        )

    def loss_weight(self, logits: Tensor, target: Any) -> Tensor | int:
        """The weight of a batch's mean loss in the epoch's mean: the divisor of its sum.

        Override it together with `loss` if the divisor is neither the number of images nor the sum
        of their class weights.
        """
        return loss_weight(target, self.class_weights, len(logits))

    def metrics(self, num_classes: int, prefix: str) -> MetricCollection:
        """The metrics of validation and test images, under names with this prefix.

        Metrics may return several values: those of each class are logged under its name, and values
        that are no scalars are kept in `metric_values`.
        """
        return classification_metrics(num_classes, prefix)

    @override
    def setup(self, stage: str) -> None:
        if not self.has_begun:
            self.begin_run(stage)

    def begin_run(self, stage: str) -> None:
        """Prepare a run; a subclass may override `setup` without calling it."""
        clone_inference_tensors(self)  # of an earlier evaluation
        use_atomic_checkpoints(self.trainer.strategy)
        report_damaged_checkpoints(self.trainer)
        refuse_fsdp1_rewrap(self.trainer.strategy, self)
        if stage == "fit":
            refuse_fsdp1_options(self.trainer.strategy)
        self._scores, self.loss_watch = TrainingMetrics(), LossWatch()
        log_evaluations(self, self.trainer)
        datamodule = getattr(self.trainer, "datamodule", None)
        prepare_data_classes(self, datamodule, trains=stage == "fit")

    def match_data_classes(self, loaders: Any = None) -> None:
        """Make label k of the data and output k of the head the same class, by name.

        It is called when the head is final. It does nothing at a second call, or if the data or the
        head has no class names.

        Args:
            loaders: The data's loaders, for class names that no data module has.

        Raises:
            ValueError: The data has other classes.
        """
        if message := match_head(self, loaders):
            rank_zero_info(message)

    @override
    def on_fit_start(self) -> None:
        if not has_run_hooks(self):
            begin_fit(self)

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if not has_run_hooks(self):
            begin_batch(self, batch_idx)

    @override
    def on_train_start(self) -> None:
        if not has_run_hooks(self):
            begin_training(self)
        self.warn_random_backbone()

    def warn_random_backbone(self, *, is_probed: bool = False, is_last: bool = False) -> None:
        """Warn once if a random backbone is frozen or probed."""
        random = self._random_backbone and warn_random_layers(
            self._random_backbone, self, is_probed
        )
        self._random_backbone = None if is_last else random

    @override
    def on_train_epoch_start(self) -> None:
        if not has_run_hooks(self):
            begin_epoch(self)

    @override
    def on_train_epoch_end(self) -> None:
        if not has_run_hooks(self):
            finish_epoch(self)

    @override
    def training_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> Tensor:
        images, target = split_batch(batch)
        if not self.stops_if_nonfinite:
            self.loss_watch.save_statistics(self)
        target = labels_of(self, target, batch_idx)
        has_class = is_class_index(target)
        labels = target if has_class else None
        if self._mixing is not None:
            images, target = self._mixing(images, target)
            if has_class or not self.has_own_loss:  # otherwise an image may have several
                labels = target.argmax(dim=1)  # the class with the greater share of each image
        logits = logits_for(self, images, channels=len(self.data_config.mean))
        loss = check_loss(self.loss(logits, target))
        for weight, auxiliary in self._auxiliary:
            loss = loss + weight * self.loss(auxiliary, target)
        self._auxiliary = ()
        counts = self.loss_weight(logits, target)
        self._scores.add(self, loss, logits, labels, weight=counts)
        position = StepPosition(self.current_epoch, batch_idx, self.global_step)
        self.loss_watch.add(loss, images, logits, position=position)
        return loss

    @override
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(loss, *args, **kwargs)
        stop_or_skip_nonfinite(self)  # while the device is busy with the backward pass

    @override
    def validation_step(
        self, batch: tuple[Tensor, Any], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._count("val", batch, batch_idx, dataloader_idx)

    @override
    def test_step(self, batch: tuple[Tensor, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._count("test", batch, batch_idx, dataloader_idx)

    def _count(self, stage: Stage, batch: Any, batch_idx: int, loader: int) -> None:
        images, target = split_batch(batch)
        if type(self).metrics is ClassifierSteps.metrics:
            refuse_unmeasurable(self, target)
        target = labels_of(self, target, batch_idx)
        logits = logits_for(self, images, channels=len(self.data_config.mean))
        count_evaluation(self, stage, logits, target, batch_idx=batch_idx, loader=loader)

    @override
    def predict_step(self, batch: tuple[Tensor, Tensor] | Tensor, batch_idx: int) -> Tensor:
        """The probabilities (N, num_classes) of a batch of images, with or without labels."""
        images = images_of(batch)
        return probabilities(logits_for(self, images, channels=len(self.data_config.mean)))

    @torch.no_grad()
    def predict_image(self, image: str | Path | Image.Image) -> dict[str, float]:
        """The probability of each class for one image, the most probable first.

        Args:
            image: A Pillow image, or a path; its EXIF orientation is applied.
        """
        if not isinstance(image, str | Path | Image.Image):
            raise TypeError(
                "`predict_image` takes one picture, as a path or an image of Pillow, but got a"
                f" {type(image).__name__}: see `Image.fromarray`; `Trainer.predict` takes many."
            )
        pixels = eval_transform(self.data_config)(as_rgb(image))[None]
        with eval_mode(self):
            scores = probabilities(self(pixels.to(self.device).type(self.dtype)))[0].tolist()
        return dict(sorted(zip(self.classes, scores, strict=True), key=lambda pair: -pair[1]))

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if CHECKPOINT_KEY not in checkpoint:  # a checkpoint of weights alone calls no callback
            self.save_state(checkpoint)

    def save_state(self, checkpoint: dict[str, Any]) -> None:
        """Add the classifier's state to a checkpoint."""
        if self.stops_if_nonfinite:
            refuse_nonfinite_weights(self)
        save_run(self._trainer, checkpoint)
        checkpoint[CHECKPOINT_KEY] = {
            "classes": self.classes if self.head_classes.is_named else None,
            "class_weights": None if self.class_weights is None else self.class_weights.tolist(),
            "data_config": self.data_config.to_dict(),
            "run_seed": self._run_seed,
            "scores": self._scores.mean_of_processes(self._trainer and self._trainer.strategy),
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if (data := checkpoint.get(CHECKPOINT_KEY)) is None:
            raise ValueError(
                "The checkpoint was not written by a FinetuneClassifier. To start from its weights,"
                " pass its path as `weights`."
            )
        refuse_lost_schedule(self._trainer, checkpoint)
        load_classes(self, checkpoint)
        load_class_weights(self, data)
        load_data_config(self, DataConfig.from_checkpoint(data["data_config"]))
        self._run_seed, self._resumed = data["run_seed"], load_run(self._trainer, checkpoint)
        self._scores.sums = data.get("scores")
        if self._resumed and self._scores.sums is not None:
            self._resumed.drop_epoch_metrics("train/loss", "train/acc")

    def name_outputs(self, classes: HeadClasses) -> None:
        """Name the outputs, also in the metrics and in the network's config."""
        is_new = classes.names != self.head_classes.names
        self.head_classes = classes
        update_class_names(self.backbone, classes.names)
        if is_new and type(self).metrics is not ClassifierSteps.metrics:  # they may contain names
            self._set_metrics()

    def _set_metrics(self) -> None:
        self.loader_measures = {}
        val, test = (self.metrics(self.num_classes, prefix) for prefix in ("val/", "test/"))
        self.val_metrics = as_collection(val, "val/").to(self.device)
        self.test_metrics = as_collection(test, "test/").to(self.device)
        self._metric_attributes = None  # Lightning searches for them only once

    def _set_classes(self, classes: HeadClasses) -> None:
        """Set metrics, mixing and class weights for new classes."""
        self.head_classes, self.initial_head = classes, None
        num_classes = self.num_classes
        self.val_loss, self.test_loss = MeanLoss(), MeanLoss()
        self._set_metrics()
        alphas = {key: self.hparams[key] for key in ("mixup_alpha", "cutmix_alpha")}
        self._mixing = make_mixing(num_classes, **alphas)
        weights = self.hparams["class_weights"]
        self.set_class_weights(None if weights == "balanced" else weights)

    def set_class_weights(self, weights: list[float] | None) -> None:
        """Set the weights of classes in the loss, in the order of the head's outputs."""
        tensor = None if weights is None else torch.tensor(weights, device=self.device)
        self.register_buffer("class_weights", tensor, persistent=False)


def load_data_config(module: ClassifierSteps, config: DataConfig) -> None:
    """Set the data config of a checkpoint's run; in training, that of the data module."""
    module.data_config = config
    current = getattr(getattr(module._trainer, "datamodule", None), "data_config", config)
    if isinstance(current, DataConfig) and current != config:
        rank_zero_warn(
            f"The data says {current.differences(config)}, as in the checkpoint's run. So the"
            " network sees other pictures than it was trained on."
        )
        if module.trainer.state.fn == "fit":
            module.data_config = current
