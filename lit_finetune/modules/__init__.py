"""Any `nn.Module` without its wrappers.

Modules in; names without the prefixes of `torch.compile` and FSDP1, logits, channels out. Uses
`images`.
"""
