"""The classifier of a network: find it, replace it, reorder its outputs, see how they are used.

Networks in, layers and names out. Uses `images`, `modules`.
"""
