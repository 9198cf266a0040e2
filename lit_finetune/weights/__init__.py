"""Load a weights file into a network, and report what fitted.

A network and a file in, a `LoadReport` out. Uses `backbones`, `blocks`, `checkpoints`, `files`,
`heads`, `modules`.
"""
