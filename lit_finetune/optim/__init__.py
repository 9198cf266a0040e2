"""Named parameter groups, the optimizer and its schedulers, groups that join later.

Blocks and rates in, a `torch.optim.Optimizer` out. Uses `blocks`, `schedules`.
"""
