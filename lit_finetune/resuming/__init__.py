"""A run that goes on is the run that never stopped: loops, gradients and checkpoints.

A Trainer and a checkpoint in; loops, loaders and schedulers set to the batch that comes next out.
Uses `checkpoints`, `distributed`, `loading`.
"""
