"""Any `nn.Module`, seen without its wrappers: the ground floor.

Modules in; names without the prefixes of `torch.compile` and FSDP1, logits, channels out.
Uses `images`.
"""
