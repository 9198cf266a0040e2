"""`FrozenPrefixCache`: compute the frozen blocks once for each image, and train from tables.

A Trainer's loaders in, loaders of the input of the first trained block out.
"""
