"""Apply a phase to a module and enforce it: gradients, eval mode, batch statistics.

A module and a plan in; the same module, with only the planned parameters training. Uses `blocks`,
`schedules`, `distributed`.
"""
