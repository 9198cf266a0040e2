"""DDP and FSDP: wrap a module so that its trainable parameters may change.

A strategy and a plan in; wrapped or sharded modules out. Uses `blocks`, `checkpoints`, `modules`,
`schedules`.
"""
