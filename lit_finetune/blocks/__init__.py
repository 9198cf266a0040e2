"""Any network as an ordered list of named blocks, stem first, head last.

A network in, a list of `Block` (names only) out. Uses `heads`, `modules`.
"""
