"""Run a network up to a block, and from there on, bit for bit as in one forward.

A network and a block in; the input of the block, or the logits, out. Uses `blocks`, `modules`.
"""
