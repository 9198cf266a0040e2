"""The order of samples and their random numbers, as functions of a seed and the run's position.

Data loaders and a `RunPosition` in; the same loaders, in a repeatable order, out. Uses `files`.
"""
