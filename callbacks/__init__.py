"""Callbacks that fine-tune: thin shells, Trainer events in, calls to the core out."""

from .checkpoint import BestCheckpoint as BestCheckpoint
from .checkpoint import LastCheckpoint as LastCheckpoint
from .freeze_unfreeze import FreezeUnfreezeCallback as FreezeUnfreezeCallback
from .linear_probe import LinearProbe as LinearProbe
from .predictions import PredictionWriter as PredictionWriter
from .prefix_cache.callback import FrozenPrefixCache as FrozenPrefixCache
from .progress import SparingProgressBar as SparingProgressBar
from .run_summary import RunReport as RunReport
