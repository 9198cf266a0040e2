"""Resume a run exactly: loops, gradients and checkpoints.

A Trainer and a checkpoint in; loops, loaders and schedulers set to the next batch out. Uses
`checkpoints`, `distributed`, `files`, `loading`.
"""
