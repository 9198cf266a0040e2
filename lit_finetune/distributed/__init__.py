"""DDP and FSDP2: the wrapper follows the parameters that train.

A strategy and a plan in; wrapped or sharded modules out. Uses `blocks`, `checkpoints`, `schedules`.
"""
