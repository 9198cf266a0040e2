"""The command line: Lightning's, with our models, data and defaults."""

import io
import logging
import os
import sys
from argparse import SUPPRESS, Action
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, NoReturn

import torch
from jsonargparse import DefaultHelpFormatter, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

import lit_finetune.datamodules  # noqa: F401  # so that `--data DigitsDataModule` finds it
from lit_finetune.blocks.table import block_table, describe_blocks
from lit_finetune.callbacks import (
    BestCheckpoint,
    LastCheckpoint,
    PredictionWriter,
    RunReport,
    SparingProgressBar,
)
from lit_finetune.checkpoints.command_defaults import (
    LIGHTNING_CHECKPOINTS,
    CheckpointModel,
    read_model,
)
from lit_finetune.checkpoints.removal import is_local
from lit_finetune.classifier import FinetuneClassifier
from lit_finetune.cli.arguments import CommandWords, read_command
from lit_finetune.cli.config_keys import refuse_repeated_keys
from lit_finetune.cli.errors import check_configs, check_writable, explained, find_refusal, told
from lit_finetune.cli.parser_messages import short_message
from lit_finetune.files.terminal_text import printable

MAX_CLASSES = 40
"""How many known classes the help lists for an argument."""
LIKELY_CLASSES = ("callbacks.", "datamodules.", "lit_finetune.", "torch.optim.")
"""What the names of those begin with that it lists even so."""

_BEST = {
    "monitor": "val/acc",
    "mode": "max",
    "filename": "epoch={epoch}-acc={val/acc:.4f}",
    "auto_insert_metric_name": False,
}
_NOT_FOR_BLOCKS = ("data", "trainer", "checkpoint", "last_checkpoint", "predictions", "ckpt_path")
"""What a configuration of a run may hold, and the command `blocks` has no use for."""
_PICTURES = "lit_finetune.datamodules.ImageFolderDataModule"
_KINDS = (ProgressBar, LearningRateMonitor, PredictionWriter, RunReport, ModelCheckpoint)
_BASES: dict[str, tuple[type, ...]] = {
    "data": (LightningDataModule,),
    "trainer.callbacks": (Callback,),
    "trainer.logger": (Logger,),
    "model.optimizer": (torch.optim.Optimizer,),
    "model.lr_scheduler": (torch.optim.lr_scheduler.LRScheduler,),
}
"""The options that take a class, and of what."""
_NUM_CLASSES_GIVEN = "`model.num_classes` is not to be given: it follows from the data."


class BriefHelp(DefaultHelpFormatter):
    """Help that names the known classes of an argument, but of very many only the likely ones.

    Of `torch.nn.Module`, which a backbone may be, there are more than a thousand.
    """

    @override
    def _get_help_string(self, action: Action) -> str:
        text = super()._get_help_string(action)
        head, found, rest = text.partition(", known subclasses: ")
        classes = rest.removesuffix(")").split(", ")
        if not found or len(classes) <= MAX_CLASSES:
            return text
        likely = [name for name in classes if name.startswith(LIKELY_CLASSES)]
        return f"{head}, known subclasses: {', '.join([*likely, 'and many more'])})"


class FinetuneTrainer(Trainer):
    """A Trainer with commands of ours beside Lightning's."""

    def blocks(self, model: FinetuneClassifier) -> None:
        """Print the network's blocks, of which schedules speak, and what each of them costs."""
        config = model.data_config
        image = torch.zeros(1, len(config.mean), *config.image_size)
        print(block_table(describe_blocks(model.backbone, image, head_name=model.head_name)))


class FinetuneParser(LightningArgumentParser):
    """A parser whose errors can be found on the screen."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if message.startswith('Linked "model.num_classes"'):
            super().error(_NUM_CLASSES_GIVEN, ex)
        options = [name for action in self._actions for name in action.option_strings]
        super().error(printable(short_message(message, options=options, bases=_BASES)), ex)


class FinetuneCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict`, with the number of classes taken from the data.

    And `blocks`, which takes the same configurations and leaves the data in them alone.
    """

    def __init__(self, *args: Any, command: str | None = None, **kwargs: Any) -> None:
        """Prepare the options of every command, or of `command` alone, which is faster."""
        self._command = command
        super().__init__(*args, **kwargs)

    @override
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {**LightningCLI.subcommands(), "blocks": {"model"}}

    @override
    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        self._subcommand_method_arguments[subcommand] = []
        parser: LightningArgumentParser
        if self._command not in (None, subcommand):
            return self.init_parser(**kwargs)
        if subcommand != "blocks":
            parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
            parser.set_defaults(weights_only=True)  # or Lightning unpickles what `http` brings
            if subcommand == "predict":
                parser.set_defaults(return_predictions=False)  # the table of predictions has them
            return parser
        parser = self.init_parser(**kwargs)
        self.add_default_arguments_to_parser(parser)
        parser.add_lightning_class_args(self._model_class, "model")
        parser.set_defaults({"model.num_classes": 1000})
        for key in _NOT_FOR_BLOCKS:
            parser.add_argument(f"--{key}", type=Any, help=SUPPRESS)
        return parser

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        given: Any = vars(args) if isinstance(args, Namespace) else args
        words = read_command(sys.argv[1:] if given is None else given, [*self.subcommands()])
        self._of_checkpoint: CheckpointModel | None = None
        if words.command in ("validate", "test", "predict") and words.ckpt_path:
            self._take_from_checkpoint(words)
        super().parse_arguments(parser, args)

    def _take_from_checkpoint(self, words: CommandWords) -> None:
        """Let a checkpoint say what the command leaves out, of the network and of the data."""
        path, parser = str(words.ckpt_path), self._parser(words.command)
        if path in LIGHTNING_CHECKPOINTS or path.startswith("registry:"):
            return
        taken = [*vars(parser.get_defaults()["model"])]
        try:
            found = self._of_checkpoint = read_model(path, overrides=words.model, accepted=taken)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        parser.set_defaults({f"model.{key}": value for key, value in found.arguments.items()})
        parser.set_defaults({"data": {"class_path": _PICTURES}})

    @override
    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything",
            type=bool | int,
            default=self.seed_everything_default,
            help="The seed of all that is random, so that a run can be repeated; true for another"
            " one each time.",
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        count = self.count_classes
        parser.link_arguments("data", "model.num_classes", compute_fn=count, apply_on="instantiate")
        parser.add_class_arguments(BestCheckpoint, "checkpoint")
        parser.set_defaults({f"checkpoint.{key}": value for key, value in _BEST.items()})
        parser.add_class_arguments(LastCheckpoint, "last_checkpoint")
        parser.link_arguments("checkpoint.dirpath", "last_checkpoint.dirpath")
        parser.add_class_arguments(PredictionWriter, "predictions")

    def count_classes(self, data: Any) -> int:
        """How many classes the model has: as many as its checkpoint, or else as the data."""
        return (self._of_checkpoint and self._of_checkpoint.num_classes) or int(data.num_classes)

    @override
    def before_instantiate_classes(self) -> None:
        if self.subcommand == "blocks":
            for key in _NOT_FOR_BLOCKS:
                self.config["blocks"][key] = None
            self.config["blocks"]["model"]["weights"] = None  # not to download what is not shown
            return
        model = self._get(self.config, "model")
        if self._of_checkpoint and (others := self._of_checkpoint.contradictions(vars(model))):
            rank_zero_warn(f"Not as in the checkpoint's run: {'; '.join(others)}.")
        if "num_classes" in model:  # a file has it: of no effect so far
            self._parser(self.subcommand).error(_NUM_CLASSES_GIVEN)
        if self.subcommand != "fit" and not self._get(self.config, "ckpt_path"):
            rank_zero_info(
                "No `ckpt_path` is given: the network is as the configuration builds it."
            )

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer of the configuration, with loggers, checkpoints and report by default."""
        if self.subcommand == "blocks":
            return FinetuneTrainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        given = self._get(self.config_init, "trainer")
        logger = given["logger"]
        if logger is None or logger is True:
            logger = default_loggers(given["default_root_dir"] or os.getcwd())
        if not logger:
            self.save_config_callback = None  # without a folder of logs it has no place
        has_bar = given["enable_progress_bar"] is not False
        keeps = given["enable_checkpointing"] is not False
        if (logger or (keeps and self.subcommand == "fit")) and not given["fast_dev_run"]:
            check_writable(given["default_root_dir"] or os.getcwd(), "--trainer.default_root_dir")
            if keeps and (folder := self._get(self.config, "checkpoint.dirpath")):
                check_writable(folder, "--checkpoint.dirpath")
        checkpoints = [
            self._get(self.config_init, key) for key in ("checkpoint", "last_checkpoint")
        ]
        defaults = [
            *([SparingProgressBar()] if has_bar else []),
            *([LearningRateMonitor()] if logger else []),
            *(checkpoints if keeps else []),
            self._get(self.config_init, "predictions"),
            RunReport(),
        ]
        callbacks = with_defaults(given["callbacks"], defaults)
        return super().instantiate_trainer(logger=logger, callbacks=callbacks, **kwargs)

    @override
    def instantiate_classes(self) -> None:
        limited = self._of_checkpoint.build_context if self._of_checkpoint else nullcontext
        with explained(self.config.get(self.subcommand, self.config)), limited():
            super().instantiate_classes()

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        with explained(self.config[subcommand]):
            super()._run_subcommand(subcommand)

    @override
    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        if kwargs.get("ckpt_path") == "best":  # Lightning knows that of this process alone
            kwargs["ckpt_path"] = BestCheckpoint.find_best(self.trainer)
        return kwargs

    def after_fit(self) -> None:
        """Predict with the best checkpoint, so that a run ends with something to look at."""
        kept = [getattr(each, "best_model_path", "") for each in self.trainer.checkpoint_callbacks]
        # The best, or else the last; from a checkpoint that was resumed no address to fetch.
        checkpoint = next((path for path in kept if path and is_local(path)), None)
        if checkpoint is None or not self.trainer.loggers:
            return
        try:
            self.trainer.predict(
                self.model,
                datamodule=self.datamodule,
                ckpt_path=checkpoint,
                return_predictions=False,
                weights_only=True,
            )
        except (ValueError, OSError, MisconfigurationException) as error:
            # The training is done and saved: whatever is the matter with the pictures to predict
            # must not make it look otherwise.
            rank_zero_info(f"Nothing was predicted: {error}")

    @override
    def _parse_ckpt_path(self) -> None:
        """Leave the model to the configuration.

        Lightning would let the arguments in a checkpoint override those that the user gives now,
        among them the number of classes, which is linked to the data.
        """


def default_loggers(root: str) -> list[Logger]:
    """TensorBoard and CSV, in one folder a run."""
    table = CSVLogger(root)  # the first, since it would warn of a folder that has files already
    return [table, TensorBoardLogger(root, name=table.name, version=table.version)]


def with_defaults(
    given: Callback | list[Callback] | None, defaults: Iterable[Callback]
) -> list[Callback]:
    """The user's callbacks, and each default of whose kind the user has brought none."""
    callbacks = given if isinstance(given, list) else [given] if given else []
    brought = {kind for kind in _KINDS for callback in callbacks if isinstance(callback, kind)}
    return [*callbacks, *(each for each in defaults if not isinstance(each, tuple(brought)))]


class _Stderr(io.TextIOBase):
    """Whatever `sys.stderr` is at the moment. Names of files in messages reach it printable."""

    @override
    def write(self, text: str) -> int:
        return sys.stderr.write(printable(text))

    @override
    def flush(self) -> None:
        sys.stderr.flush()


def log_above_progress_bar() -> None:
    """Let Lightning's messages pass through the progress bar, which would else overwrite them."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(_Stderr())


def main(
    model_class: type[FinetuneClassifier] = FinetuneClassifier, args: list[str] | None = None
) -> None:
    """Run the command line.

    Args:
        model_class: The classifier to train; pass your own subclass to train that.
        args: The command's words; by default those that the program was called with.

    Raises:
        SystemExit: The command cannot be followed; what is wrong has been printed. With
            `JSONARGPARSE_DEBUG=true` in the environment the error itself is raised.
    """
    log_above_progress_bar()
    refuse_repeated_keys()
    usages = {name: {"usage": "%(prog)s [options]"} for name in FinetuneCLI.subcommands()}
    words = sys.argv[1:] if args is None else args
    try:
        check_configs(words)
        FinetuneCLI(
            model_class,
            LightningDataModule,
            subclass_mode_data=True,
            trainer_class=FinetuneTrainer,
            trainer_defaults={"log_every_n_steps": 5},  # small data sets have few steps an epoch
            seed_everything_default=0,
            parser_class=FinetuneParser,
            parser_kwargs={"formatter_class": BriefHelp, **usages},
            auto_configure_optimizers=False,
            # Our checkpoints hold the model's arguments as plain data by themselves.
            load_from_checkpoint_support=False,
            save_config_kwargs={"overwrite": True},
            command=next((word for word in words[:1] if word in usages), None),
            args=args,
        )
    except Exception as error:
        refusal = find_refusal(error)
        if refusal is None or os.environ.get("JSONARGPARSE_DEBUG") == "true":
            raise
        print(f"error: {told(refusal)}", file=sys.stderr)
        sys.exit(2)
