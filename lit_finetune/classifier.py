"""A pretrained network with a new head, as a LightningModule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from typing_extensions import Self, override

from lit_finetune.blocks.block import Block, list_blocks
from lit_finetune.build import assemble
from lit_finetune.checkpoints.trusted_hparams import trust_name
from lit_finetune.classes.head_classes import unnamed
from lit_finetune.distributed.fsdp2 import shard
from lit_finetune.distributed.supported_strategies import refuse_arguments_under_fsdp1
from lit_finetune.distributed.wrapping import prepare_fsdp1, wrap_by_blocks
from lit_finetune.freezing.auxiliary_networks import find_auxiliary_networks, without_modules
from lit_finetune.freezing.freeze import enforce_eval, frozen_modules
from lit_finetune.gradient_checkpointing import recompute_units
from lit_finetune.heads.replace import choose_head, forward_features, replace_head
from lit_finetune.heads.untrained import new_head
from lit_finetune.images.data_config import DataConfig
from lit_finetune.lora import Lora, merge_adapters, read_lora
from lit_finetune.modules.compiled import unwrap_compiled
from lit_finetune.modules.fsdp1 import parameters_by_name
from lit_finetune.modules.outputs import check_logits, logits_of, weighted_auxiliary_logits
from lit_finetune.optim.optimizer import (
    DEFAULT_LR,
    add_following_groups,
    build_optimizer,
    can_fuse,
    cosine_with_warmup,
    lr_scheduler_config,
)
from lit_finetune.optim.param_groups import ParamGroup, make_param_groups
from lit_finetune.resuming.load_from_checkpoint import trusted_checkpoint
from lit_finetune.splitting.split import PrefixOutput, forward_from, forward_prefix
from lit_finetune.training.class_matching import refuse_unread_checkpoint
from lit_finetune.training.hparams import check_hparams, plain_hparams
from lit_finetune.training.module import ClassifierSteps
from lit_finetune.training.untrained_head import report_untrained, saved_new_head, untrained_head
from lit_finetune.weights.own_checkpoint import CHECKPOINT_KEY, UNTRAINED_KEY
from lit_finetune.weights.transformers_keys import to_network_names


class FinetuneClassifier(ClassifierSteps):
    """Any image backbone with a head for your classes, ready to be fine-tuned.

    Batches are `(images, labels)`: floats (N, C, H, W) and int64 (N). It logs `train/loss`,
    `train/acc`, and for each of `val` and `test` the loss, accuracy (`acc`), accuracy over classes
    (`acc_macro`), macro F1 (`f1`) and above five classes top-5 accuracy (`acc_top5`).

    Made to be subclassed: `loss`, `metrics`, `make_head`, `make_optimizer` and `make_scheduler` are
    small methods that can be overridden one by one.

    Args:
        backbone: A torchvision name (`resnet18`), `timm/<name>`, `hf/<model type, folder or name on
            the hub>`, an import path (`my_package.nets.ResNet`), or a network.
        num_classes: The number of classes.
        weights: `DEFAULT` or the name of a torchvision weights enum, `pretrained` for timm, or the
            path of a weights file. By default the network keeps its weights.
        head: `linear`, `mlp`, a module, or a callable from `(in_features, num_classes)` to one. A
            `linear` head keeps the network's own layer if that has `num_classes` outputs.
        head_name: The network's classifier layer; by default it is found. With "", or if none is
            found, a head is appended to the network's features.
        backbone_kwargs: The arguments for building a named backbone.
        in_chans: Channels of an image; another number adapts the network's first convolution.
        image_size: The side of an image; by default the network's own.
        drop_rate: Dropout probability before the head's last layer.
        lr: The head's learning rate. An optimizer with a rate of its own may set it instead.
        backbone_lr_ratio: The rate of the last block before the head, relative to the head's.
        layer_decay: The factor on the rate from each block to the one before it.
        weight_decay: Of all parameters except norms and biases. By default 0.01 under AdamW, and
            another optimizer's own.
        optimizer: Takes parameter groups, returns the optimizer. By default AdamW.
        lr_scheduler: Takes the optimizer, returns the scheduler. By default linear warm-up over a
            twentieth of all steps, then half a cosine; `constant` for none.
        lr_scheduler_interval: Whether a given scheduler steps after each epoch or step.
        label_smoothing: The share of the probability that is spread over all classes.
        class_weights: A weight per class, or `balanced`: inversely proportional to the class's
            number of training images.
        mixup_alpha: The parameter of MixUp's Beta distribution; 0 for none.
        cutmix_alpha: The parameter of CutMix's Beta distribution; 0 for none.
        min_match: The least share of the backbone's parameters that a weights file must fill.
        lora: Low-rank adapters, which train instead of the backbone's weights.
        channels_last: Whether to use the channels-last memory format for images and weights, which
            makes many convolutional networks faster, especially on a GPU.
        compile: Whether to compile the backbone with `torch.compile`.
        gradient_checkpointing: Whether trainable blocks recompute their activations in the backward
            pass instead of storing them: less memory, more time, and the same result.
        error_if_nonfinite: Whether training raises an error if its loss is nan or infinite, before
            the step, or if a checkpoint would contain such weights. Otherwise such steps are
            skipped with a warning.

    Raises:
        ValueError: An argument is invalid; the message names all of them.
    """

    lr: float

    def __init__(  # noqa: PLR0913 (the signature is the configuration: the command line reads it)
        self,
        backbone: str | nn.Module,
        *,
        num_classes: int,
        weights: str | None = None,
        head: str | nn.Module | Callable[[int, int], nn.Module] = "linear",
        head_name: str | None = None,
        backbone_kwargs: dict[str, Any] | None = None,
        in_chans: int | None = None,
        image_size: int | None = None,
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
        lora: Lora | dict[str, Any] | None = None,
        channels_last: bool = False,
        compile: bool = False,
        gradient_checkpointing: bool = False,
        error_if_nonfinite: bool = True,
    ) -> None:
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        trust_name(backbone)
        hparams = plain_hparams(arguments)
        check_hparams(arguments)
        self.save_hyperparameters(hparams)
        self._before_fsdp1: tuple[list[Block], list[ParamGroup]] | None = None
        self.lr = lr  # the name that Lightning's Tuner sets
        self._optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        built = assemble(
            unwrap_compiled(backbone),
            num_classes=num_classes,
            weights=weights,
            head=head,
            make_head=self.make_head,
            head_name=head_name,
            backbone_kwargs=backbone_kwargs,
            in_chans=in_chans,
            image_size=image_size,
            drop_rate=drop_rate,
            min_match=min_match,
            lora=read_lora(lora),
        )
        self.backbone = built.network
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        if compile:
            self.backbone.compile()
        self.head_name = built.head_name
        if gradient_checkpointing:
            recompute_units(self, self.blocks)
        self.load_report = built.load_report
        self._rebuild_args = built.rebuild_args
        self.data_config: DataConfig = built.data_config
        self._set_classes(built.head_classes)
        self.initial_head = built.initial_head
        self._new_head, self._random_backbone = built.new_head, built.random_backbone
        self._frozen_modules = frozen_modules(self, self.blocks) if built.lora_layers else []
        rank_zero_info(str(built))

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        if type(value) is str and name in vars(self):  # fast path: Lightning sets each hook's name
            vars(self)[name] = value
            return
        # `model.backbone = torch.compile(model.backbone)` must not change names.
        super().__setattr__(name, unwrap_compiled(value) if isinstance(value, nn.Module) else value)

    @property
    def blocks(self) -> list[Block]:
        """The network's blocks from the input to the head, by names within this module."""
        if self._before_fsdp1:
            return self._before_fsdp1[0]
        with without_modules(self, find_auxiliary_networks(self, network="backbone")):
            return list_blocks(self, f"backbone.{self.head_name}")

    @override
    def configure_model(self) -> None:
        """Shard the backbone block by block under a strategy that shards, and do nothing else."""
        shard(self.backbone, self.device_mesh, head_name=self.head_name)
        if self._trainer is not None and prepare_fsdp1(self.trainer.strategy, self):
            refuse_arguments_under_fsdp1(self.hparams)
            wrap_by_blocks(self.trainer.strategy, self.backbone, self.head_name)
            self._before_fsdp1 = None
            self._before_fsdp1 = self.blocks, self.param_groups()  # from shapes, which it flattens

    @override
    def forward(self, images: Tensor | PrefixOutput) -> Tensor:
        """The logits (N, num_classes) of images (N, C, H, W), or of cached block inputs."""
        if isinstance(images, PrefixOutput):
            self._auxiliary = ()
            return self.forward_from(*images)
        output = self.backbone(self._to_memory_format(images))
        self._auxiliary = weighted_auxiliary_logits(output)
        logits = logits_of(output)
        check_logits(logits, self.num_classes, self.head_name)
        return logits

    def forward_features(self, images: Tensor) -> Tensor:
        """The input of the head in the forward of images (N, C, H, W)."""
        return forward_features(self.backbone, self.head_name, images)

    def forward_prefix(self, images: Tensor, upto: str) -> Tensor:
        """The input of the block `upto` in the forward of images (N, C, H, W)."""
        images_in_format = self._to_memory_format(images)
        return forward_prefix(self.backbone, images_in_format, upto, head_name=self.head_name)

    def forward_from(
        self, h: Tensor, upto: str, image_shape: tuple[int, ...] | None = None
    ) -> Tensor:
        """The logits from the input of the block `upto`, equal to those of the whole forward.

        Args:
            h: The result of `forward_prefix`.
            upto: The block's name.
            image_shape: Of the images; by default that of an earlier `forward_prefix`.
        """
        options: dict[str, Any] = {"head_name": self.head_name, "image_shape": image_shape}
        return forward_from(self.backbone, h, upto, **options)

    def _to_memory_format(self, images: Tensor) -> Tensor:
        is_channels_last = self.hparams["channels_last"]
        return images.contiguous(memory_format=torch.channels_last) if is_channels_last else images

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.backbone.get_submodule(self.head_name)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new one, of the same kind, for another number of classes.

        Args:
            num_classes: The new number; names are numbers until a data module gives names.
        """
        check_hparams({"num_classes": num_classes})
        options = self.hparams["head"] or "linear"
        head = choose_head(
            self.backbone, self.head_name, num_classes, make_head=self.make_head, head=options
        )
        self.head_name = replace_head(
            self.backbone,
            num_classes,
            head=head,
            head_name=self.head_name,
            drop_rate=self.hparams["drop_rate"] if head == options else 0.0,
        )
        self._new_head = new_head(self.backbone, self.head_name, is_random=isinstance(head, str))
        self.hparams.update(num_classes=num_classes, class_weights=None)
        self._set_classes(unnamed(num_classes))

    def merge_lora(self) -> nn.Module:
        """A copy of the network with its adapters merged into the weights, by their own names."""
        return merge_adapters(self.backbone)

    def make_head(self, in_features: int, num_classes: int) -> nn.Module | None:
        """Override to build your own head; None, as here, uses the argument `head`.

        It is called from `__init__`, before attributes of a subclass exist.
        """
        return None

    def make_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer of these parameter groups; the groups of other blocks are added later."""
        if self._optimizer is not None:
            return self._optimizer(groups)
        return AdamW(groups, fused=can_fuse(self._trainer, self.parameters()))

    def make_scheduler(self, optimizer: Optimizer) -> dict[str, Any] | None:
        """Lightning's configuration of the scheduler; None for a constant rate.

        Raises:
            ValueError: The default cosine needs the length of the run, which is unknown.
        """
        if self._lr_scheduler == "constant":
            return None
        if self._lr_scheduler is None:
            steps = self.trainer.estimated_stepping_batches
            return {"scheduler": cosine_with_warmup(optimizer, total=steps), "interval": "step"}
        interval = self.hparams["lr_scheduler_interval"]
        trainer = self._trainer
        return lr_scheduler_config(
            self._lr_scheduler(optimizer),
            interval,
            validates=trainer is None or trainer.enable_validation,
            every_n_epochs=1 if trainer is None else trainer.check_val_every_n_epoch,
        )

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
        trainer = self._trainer
        if trainer is not None and not trainer.strategy.restore_checkpoint_after_setup:
            self.match_data_classes()  # before callbacks iterate over all images in `on_fit_start`
        groups = self._before_fsdp1[1] if self._before_fsdp1 else self.param_groups()
        parameters = parameters_by_name(self)
        optimizer = build_optimizer(
            groups,
            parameters,
            factory=self.make_optimizer,
            lr=self.lr,
            weight_decay=self.hparams["weight_decay"],
        )
        config = self.make_scheduler(optimizer)
        add_following_groups(optimizer, [config["scheduler"]] if config else [], groups, parameters)
        return {"optimizer": optimizer, "lr_scheduler": config} if config else optimizer

    @override
    def predict_image(self, image: str | Path | Image.Image) -> dict[str, float]:
        self.report_new_head(refuse=True)
        return super().predict_image(image)

    def report_new_head(self, *, refuse: bool = False) -> None:
        """Report an untrained head, or raise an error if `refuse` is set.

        Raises:
            ValueError: The head is random, and `refuse` is set.
        """
        report_untrained(self, self._random_backbone, refuse=refuse)

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        enforce_eval(self._frozen_modules)

    @override
    def save_state(self, checkpoint: dict[str, Any]) -> None:
        super().save_state(checkpoint)
        key = self.CHECKPOINT_HYPER_PARAMS_KEY
        # The weights are in the checkpoint, so loading it must not need other files.
        checkpoint[key] = {**checkpoint.get(key, {}), "weights": None, **self._rebuild_args}
        checkpoint[CHECKPOINT_KEY]["weights"] = self.hparams["weights"]
        checkpoint[CHECKPOINT_KEY][UNTRAINED_KEY] = untrained_head(self)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._random_backbone = None
        if state := checkpoint.get("state_dict"):  # missing if shards have been loaded already
            # The checkpoint may be of another version of transformers.
            checkpoint["state_dict"] = dict(to_network_names(self, {"": state})[""])
        self._new_head = saved_new_head(self, checkpoint)

    @classmethod
    @override
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a classifier from a checkpoint, as in Lightning, but read the file as plain data.

        Names in it are not imported, fetched or read, except networks of torchvision, timm and
        transformers. For your own network, pass the class, import path or module:
        `load_from_checkpoint(file, backbone=MyNet)`. An import path that this program has passed to
        a classifier is trusted. A head that was a module or callable has to be passed again.

        The path may be a URL, or the folder of a sharded run. The arguments are Lightning's, but
        `weights_only=False` is refused: allow objects of your own classes in the file with
        `torch.serialization.add_safe_globals`.
        """
        options = {"hparams_file": hparams_file, "weights_only": weights_only}
        checked = trusted_checkpoint(cls, checkpoint_path, user_kwargs=kwargs, **options)
        with checked as (file, load_kwargs):
            loaded = super().load_from_checkpoint(file, map_location, strict=strict, **load_kwargs)
        refuse_unread_checkpoint(loaded, checkpoint_path)
        return loaded
