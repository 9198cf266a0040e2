"""`FrozenPrefixCache`: run the frozen blocks once over each picture, and train from the table.

A Trainer's loaders in, loaders of what enters the first block that trains out.
"""
