"""A pretrained network with a new head, as a LightningModule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from torchmetrics import MetricCollection
from typing_extensions import Self, override

from lit_finetune.assemble import assemble
from lit_finetune.blocks import Block, list_blocks
from lit_finetune.classes import balanced_weights, check_classes
from lit_finetune.compiled import unwrapped
from lit_finetune.data_config import DataConfig, eval_transform
from lit_finetune.freezing import eval_mode
from lit_finetune.heads import forward_features, own_or_given, replace_head
from lit_finetune.hparams import check_hparams, plain_hparams
from lit_finetune.images import as_rgb
from lit_finetune.metrics import accuracy, classification_metrics, probabilities
from lit_finetune.mixing import make_mixing
from lit_finetune.optim import (
    DEFAULT_LR,
    build_optimizer,
    can_fuse,
    cosine_with_warmup,
    describe_scheduler,
    join_groups,
)
from lit_finetune.outputs import logits_of, weighted_auxiliary_of
from lit_finetune.param_groups import ParamGroup, make_param_groups
from lit_finetune.place import MONITORED, catch_up, monitored, place_in_run
from lit_finetune.scores import log_evaluation, log_training
from lit_finetune.seeding import derive_seed

_KEY = "lit_finetune"
"""Where a checkpoint holds what `load_from_checkpoint` needs besides weights and arguments."""


class FinetuneClassifier(LightningModule):
    """Any image backbone with a head for your classes, ready to be fine-tuned.

    Batches are `(images, labels)`: floats (N, C, H, W) and int64 (N). It logs `train/loss`,
    `train/acc`, and for each of `val` and `test` the loss, accuracy (`acc`), accuracy over classes
    (`acc_macro`), macro F1 (`f1`) and above five classes top-5 accuracy (`acc_top5`).

    Made to be subclassed: `loss`, `metrics`, `make_head`, `make_optimizer` and `make_scheduler` are
    small methods, each of which can be replaced alone.

    Args:
        backbone: A torchvision name (`resnet18`), `timm/<name>`, an import path
            (`my_package.nets.ResNet`), or a network.
        num_classes: How many classes there are.
        weights: `DEFAULT` or the name of a torchvision weights enum, `pretrained` for timm, or the
            path of a weights file. By default the network keeps the weights that it has.
        head: `linear`, `mlp`, a module, or a callable from `(in_features, num_classes)` to one. A
            `linear` head keeps the network's own layer where that has `num_classes` outputs.
        head_name: The network's classifier layer, where it is not found by itself.
        backbone_kwargs: What to build a named backbone with.
        drop_rate: Probability of dropping a feature, before the head's last layer.
        lr: The head's learning rate. An optimizer that brings a rate of its own may set it instead.
        backbone_lr_ratio: The rate of the last block before the head, relative to the head's.
        layer_decay: The factor on the rate from each block to the one before it.
        weight_decay: Of all but norms and biases. By default 0.01 under AdamW; another optimizer
            keeps its own.
        optimizer: Takes parameter groups, returns the optimizer. By default AdamW.
        lr_scheduler: Takes the optimizer, returns the scheduler. By default linear warm-up over a
            twentieth of all steps, then half a cosine; `constant` for none.
        lr_scheduler_interval: When a scheduler that was given steps.
        label_smoothing: Share of the probability that is spread over all classes.
        class_weights: A weight per class, or `balanced`: inversely proportional to the class's
            number of training pictures.
        mixup_alpha: Of MixUp's Beta distribution; 0 for none.
        cutmix_alpha: Of CutMix's Beta distribution; 0 for none.
        min_match: The least share of the backbone's parameters that a weights file must fill.
        channels_last: Whether pictures and weights lie channels last in memory, which many
            convolutional networks run faster with, on a GPU above all.
        compile: Whether the backbone runs through `torch.compile`.

    Raises:
        ValueError: An argument cannot be; the message names all of them.
    """

    lr: float
    classes: list[str]
    class_weights: Tensor | None
    _is_named: bool
    _auxiliary: tuple[tuple[float, Tensor], ...] = ()

    def __init__(  # noqa: PLR0913 (the signature is the configuration: the command line reads it)
        self,
        backbone: str | nn.Module,
        *,
        num_classes: int,
        weights: str | None = None,
        head: str | nn.Module | Callable[[int, int], nn.Module] = "linear",
        head_name: str | None = None,
        backbone_kwargs: dict[str, Any] | None = None,
        drop_rate: float = 0.0,
        lr: float = DEFAULT_LR,
        backbone_lr_ratio: float = 0.1,
        layer_decay: float | None = None,
        weight_decay: float | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: Literal["constant"] | LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        min_match: float = 0.9,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        hparams = plain_hparams(arguments)
        check_hparams(arguments)
        self.save_hyperparameters(hparams)
        self.lr = lr  # by this name Lightning's Tuner finds it
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        built = assemble(
            unwrapped(backbone),
            num_classes=num_classes,
            weights=weights,
            head=head,
            make_head=self.make_head,
            head_name=head_name,
            backbone_kwargs=backbone_kwargs,
            drop_rate=drop_rate,
            min_match=min_match,
        )
        self.backbone = built.network
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        if compile:
            self.backbone.compile()
        self.head_name = built.head_name
        self.load_report = built.load_report
        self.data_config: DataConfig = built.data_config
        self._run_seed: int | None = None
        self._monitored: dict[str, float] = {}
        self._set_num_classes(num_classes)
        rank_zero_info(str(built))

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        # `model.backbone = torch.compile(model.backbone)`: names must stay what they are.
        super().__setattr__(name, unwrapped(value))

    @property
    def num_classes(self) -> int:
        """How many classes the head tells apart."""
        return len(self.classes)

    @property
    def blocks(self) -> list[Block]:
        """The network's blocks from the input to the head, by names within this module."""
        return list_blocks(self, f"backbone.{self.head_name}")

    @override
    def forward(self, images: Tensor) -> Tensor:
        """From images (N, C, H, W) to logits (N, num_classes)."""
        if self.hparams["channels_last"]:
            images = images.contiguous(memory_format=torch.channels_last)
        output = self.backbone(images)
        self._auxiliary = weighted_auxiliary_of(output)
        return logits_of(output)

    def forward_features(self, images: Tensor) -> Tensor:
        """From images (N, C, H, W) to what the head is given."""
        return forward_features(self.backbone, self.head_name, images)

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.backbone.get_submodule(self.head_name)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new head, of the same kind, for another number of classes in the place of the head.

        Args:
            num_classes: How many classes there are now; they are called by their numbers until
                a datamodule names them.
        """
        check_hparams({"num_classes": num_classes})
        given = self.hparams["head"] or "linear"
        head = own_or_given(
            self.backbone, self.head_name, num_classes, make_head=self.make_head, head=given
        )
        self.head_name = replace_head(
            self.backbone,
            num_classes,
            head=head,
            head_name=self.head_name,
            drop_rate=self.hparams["drop_rate"] if head == given else 0.0,
        )
        self.hparams.update(num_classes=num_classes, class_weights=None)
        self._set_num_classes(num_classes)

    def make_head(self, in_features: int, num_classes: int) -> nn.Module | None:
        """Override to build your own head; None, as here, leaves it to the argument `head`.

        It is called from `__init__`, before attributes of a subclass exist.
        """
        return None

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (N, classes) against labels (N), or probabilities like the logits."""
        return F.cross_entropy(
            logits,
            target,
            weight=self.class_weights,
            label_smoothing=self.hparams["label_smoothing"],
        )

    def metrics(self, num_classes: int, prefix: str) -> MetricCollection:
        """What is measured on validation and test pictures, under names with this prefix."""
        return classification_metrics(num_classes, prefix)

    def make_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over these parameter groups; blocks join it as groups of their own."""
        if self._optimizer is not None:
            return self._optimizer(groups)
        return AdamW(groups, fused=can_fuse(self._trainer, self.parameters()))

    def make_scheduler(self, optimizer: Optimizer) -> dict[str, Any] | None:
        """Lightning's description of the scheduler, or None for a constant rate.

        Raises:
            ValueError: The default, a cosine, was left for a run of no known length.
        """
        if self._lr_scheduler == "constant":
            return None
        if self._lr_scheduler is None:
            steps = self.trainer.estimated_stepping_batches
            return {"scheduler": cosine_with_warmup(optimizer, total=steps), "interval": "step"}
        interval = self.hparams["lr_scheduler_interval"]
        return describe_scheduler(self._lr_scheduler(optimizer), interval)

    def param_groups(self) -> list[ParamGroup]:
        """The named groups of all parameters, the head's first."""
        return make_param_groups(
            self,
            self.blocks,
            backbone_lr_ratio=self.hparams["backbone_lr_ratio"],
            layer_decay=self.hparams["layer_decay"],
        )

    @override
    def configure_optimizers(self) -> Any:
        groups, parameters = self.param_groups(), dict(self.named_parameters())
        optimizer = build_optimizer(
            groups,
            parameters,
            factory=self.make_optimizer,
            lr=self.lr,
            weight_decay=self.hparams["weight_decay"],
        )
        config = self.make_scheduler(optimizer)
        join_groups(optimizer, [config["scheduler"]] if config else [], groups, parameters)
        return {"optimizer": optimizer, "lr_scheduler": config} if config else optimizer

    @override
    def setup(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        if (classes := getattr(datamodule, "classes", None)) is not None:
            check_classes(classes, self.classes, named=stage != "fit" and self._is_named)
            if stage == "fit":
                self.classes, self._is_named = list(classes), True
                self.data_config = getattr(datamodule, "data_config", self.data_config)
        if stage == "fit" and self.hparams["class_weights"] == "balanced":
            counts = getattr(datamodule, "class_counts", None)
            self._set_class_weights(balanced_weights(counts, self.classes))

    @override
    def on_fit_start(self) -> None:
        if self._run_seed is None:
            self._run_seed = torch.initial_seed()

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # What a step draws (dropout, mixing) follows from its place, so a resumed run repeats it.
        if self._run_seed is not None:
            place = (self.current_epoch, batch_idx, self.global_rank)
            torch.manual_seed(derive_seed(self._run_seed, *place))

    @override
    def on_train_start(self) -> None:
        catch_up(self.trainer, place_in_run(self.trainer.fit_loop).epoch, self._monitored)

    @override
    def on_train_epoch_end(self) -> None:
        if self.trainer.fit_loop.restarting:
            catch_up(self.trainer, self.current_epoch + 1, {})

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        target = labels
        if self._mixing is not None:
            images, target = self._mixing(images, labels)
        logits = self(images)
        loss = self.loss(logits, target)
        for weight, auxiliary in self._auxiliary:
            loss = loss + weight * self.loss(auxiliary, target)
        self._auxiliary = ()
        log_training(self, loss, logits, labels)
        return loss

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        log_evaluation(self, "val", self.val_metrics, self(batch[0]), batch[1])

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        log_evaluation(self, "test", self.test_metrics, self(batch[0]), batch[1])

    @override
    def predict_step(self, batch: tuple[Tensor, Tensor] | Tensor, batch_idx: int) -> Tensor:
        """The probabilities (N, num_classes) of images, whether or not labels come along."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return probabilities(self(images))

    @torch.no_grad()
    def predict_image(self, image: str | Path | Image.Image) -> dict[str, float]:
        """The probability of each class for one picture, the most probable first.

        Args:
            image: A picture, or the path of one.
        """
        pixels = eval_transform(self.data_config)(as_rgb(image))[None]
        with eval_mode(self):
            found = probabilities(self(pixels.to(self.device).type(self.dtype)))[0].tolist()
        return dict(sorted(zip(self.classes, found, strict=True), key=lambda pair: -pair[1]))

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        key = self.CHECKPOINT_HYPER_PARAMS_KEY
        # The weights are in the checkpoint: whoever loads it must not need the file again.
        checkpoint[key] = {**checkpoint.get(key, {}), "weights": None}
        checkpoint[MONITORED] = monitored(self.trainer)
        checkpoint[_KEY] = {
            "classes": self.classes if self._is_named else None,
            "data_config": self.data_config.to_dict(),
            "run_seed": self._run_seed,
            "weights": self.hparams["weights"],
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if (own := checkpoint.get(_KEY)) is None:
            raise ValueError(
                "The checkpoint was not written by a FinetuneClassifier. To start from its weights,"
                " pass its path as `weights`."
            )
        if own["classes"] is not None:
            check_classes(self.classes, own["classes"], named=self._is_named)
            self.classes, self._is_named = own["classes"], True
        self.data_config = DataConfig.from_dict(own["data_config"])
        self._run_seed, self._monitored = own["run_seed"], checkpoint.get(MONITORED, {})

    @classmethod
    @override
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Self:
        """The classifier that a checkpoint holds, as in Lightning, but never by unpickling code.

        A backbone or a head that was given as a module has to be given again, by keyword.
        """
        return super().load_from_checkpoint(*args, **{"weights_only": True, **kwargs})

    def _set_num_classes(self, num_classes: int) -> None:
        """Measure, mix and weigh as many classes, and call them by their numbers for now."""
        self.classes = [str(index) for index in range(num_classes)]
        self._is_named = False
        self.train_acc = accuracy(num_classes)
        self.val_metrics = self.metrics(num_classes, "val/")
        self.test_metrics = self.metrics(num_classes, "test/")
        alphas = {key: self.hparams[key] for key in ("mixup_alpha", "cutmix_alpha")}
        self._mixing = make_mixing(num_classes, **alphas)
        weights = self.hparams["class_weights"]
        self._set_class_weights(None if weights == "balanced" else weights)

    def _set_class_weights(self, weights: list[float] | None) -> None:
        tensor = None if weights is None else torch.tensor(weights, device=self.device)
        self.register_buffer("class_weights", tensor, persistent=False)
