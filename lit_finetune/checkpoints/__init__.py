"""Checkpoints as plain data: read without running code, and judged before they are used.

Files and sharded folders in; dictionaries of tensors and plain values, or one sentence that says
what is wrong, out. Uses `files`.
"""
