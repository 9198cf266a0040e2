"""Callbacks that fine-tune: thin shells, Trainer events in, calls to the core out."""

from .checkpoint import BestAndLast as BestAndLast
from .freeze_unfreeze import FreezeUnfreezeCallback as FreezeUnfreezeCallback
from .predictions import PredictionWriter as PredictionWriter
from .report import RunReport as RunReport
