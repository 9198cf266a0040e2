"""Callbacks that fine-tune: thin shells, Trainer events in, calls to the core out."""

from .freeze_unfreeze import FreezeUnfreezeCallback as FreezeUnfreezeCallback
