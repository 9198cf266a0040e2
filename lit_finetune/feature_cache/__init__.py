"""Tables of block inputs, with one row per image: their keys, files and checksums.

Tensors and row numbers in, tensors out. Uses `blocks`, `files`.
"""
