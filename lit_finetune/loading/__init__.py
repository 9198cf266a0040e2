"""Which picture comes when, with which random numbers: functions of a seed and the run's position.

Data loaders and a `RunPosition` in; the same loaders, in an order that can be repeated, out.
Uses only error messages.
"""
