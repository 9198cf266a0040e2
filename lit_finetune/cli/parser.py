"""The parser of the command line: short error messages, and a help of readable length."""

from argparse import Action
from typing import NoReturn

import torch
from jsonargparse import DefaultHelpFormatter
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from typing_extensions import override

from lit_finetune.cli.parser_messages import short_message
from lit_finetune.files.terminal_text import printable

MAX_CLASSES = 40
"""The help lists all known classes of an argument up to this number."""
LIKELY_CLASSES = ("callbacks.", "datamodules.", "lit_finetune.", "torch.optim.")
"""Prefixes of the classes that it lists of more."""
NUM_CLASSES_GIVEN = "`model.num_classes` is not to be given: it follows from the data."

_BASES: dict[str, tuple[type, ...]] = {
    "data": (LightningDataModule,),
    "trainer.callbacks": (Callback,),
    "trainer.logger": (Logger,),
    "model.optimizer": (torch.optim.Optimizer,),
    "model.lr_scheduler": (torch.optim.lr_scheduler.LRScheduler,),
}
"""The options that take a class, and the base classes of what they take."""


class BriefHelp(DefaultHelpFormatter):
    """Help that lists the known classes of an argument, or only the likely ones of very many.

    A backbone may be any `torch.nn.Module`, which has more than a thousand subclasses.
    """

    @override
    def _get_help_string(self, action: Action) -> str:
        return shorten_classes(super()._get_help_string(action))


class FinetuneParser(LightningArgumentParser):
    """A parser with short error messages."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if message.startswith('Linked "model.num_classes"'):
            super().error(NUM_CLASSES_GIVEN, ex)
        options = [name for action in self._actions for name in action.option_strings]
        super().error(printable(short_message(message, options=options, bases=_BASES)), ex)


def shorten_classes(text: str) -> str:
    """A help text without the unlikely ones of very many known subclasses.

    >>> names = [f"torch.nn.Module{i}" for i in range(99)] + ["torch.optim.SGD"]
    >>> shorten_classes(f"(type: Any, known subclasses: {', '.join(names)})")
    '(type: Any, known subclasses: torch.optim.SGD, and many more)'
    """
    head, separator, rest = text.partition(", known subclasses: ")
    classes = rest.removesuffix(")").split(", ")
    if not separator or len(classes) <= MAX_CLASSES:
        return text
    likely = [name for name in classes if name.startswith(LIKELY_CLASSES)]
    return f"{head}, known subclasses: {', '.join([*likely, 'and many more'])})"
