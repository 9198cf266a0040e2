"""Callbacks that fine-tune: thin shells, Trainer events in, calls to the core out."""

from .checkpoint import BestCheckpoint as BestCheckpoint
from .checkpoint import LastCheckpoint as LastCheckpoint
from .freeze_unfreeze import FreezeUnfreezeCallback as FreezeUnfreezeCallback
from .frozen_prefix_cache import FrozenPrefixCache as FrozenPrefixCache
from .linear_probe import LinearProbe as LinearProbe
from .predictions import PredictionWriter as PredictionWriter
from .progress import SparingProgressBar as SparingProgressBar
from .report import RunReport as RunReport
