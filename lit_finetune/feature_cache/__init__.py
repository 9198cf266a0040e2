"""Tables of what enters a block, one row for each picture: their keys, files and checks.

Tensors and picture numbers in, tensors out. Uses `blocks`, `files`.
"""
