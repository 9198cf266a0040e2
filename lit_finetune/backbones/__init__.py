"""Networks by name: one file for each source, imported when it is used.

A name (torchvision, timm, Hugging Face, an import path) in; a network, its data config and its
class names out, for any number of channels and any image size. Uses `checkpoints`, `classes`,
`files`, `images`, `modules`.
"""
