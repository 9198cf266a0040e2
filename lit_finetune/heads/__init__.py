"""The classifier of a network: find it, replace it, read its rows, see how its output is used.

Networks in, layers and names out. Uses `modules`.
"""
