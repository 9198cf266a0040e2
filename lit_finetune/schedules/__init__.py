"""What trains when: phases, selectors, strategies, triggers, and the plan for one network.

YAML, a dictionary or a strategy's name in; a `Plan` (plain data) out. Uses `blocks`, `files`,
`modules`.
"""
