"""Checkpoints as plain data: read without running code, and checked before use.

Files and sharded folders in; dictionaries of tensors and plain values, or an error, out. Uses
`files`.
"""
