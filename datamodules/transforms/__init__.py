"""Image transforms: crops, flips, shifts, affine transforms and normalization.

Images and a seed in, tensors out.
"""
