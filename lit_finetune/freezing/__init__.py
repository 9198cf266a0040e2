"""Apply a phase to a module and enforce it: gradients, eval mode, batch statistics.

A module and a plan in; the same module, of which only the planned parameters train. Uses `blocks`,
`distributed`, `feature_cache`, `modules`, `schedules`, `splitting`.
"""
