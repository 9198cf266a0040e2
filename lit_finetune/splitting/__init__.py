"""Run a network up to a block, and from there on, with the bits of the whole.

A network and a block in; the input of the block, or the logits, out. Uses `blocks`, `modules`.
"""
