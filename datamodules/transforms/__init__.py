"""What happens to a picture before the network sees it: crops, flips, affine moves.

Images and a seed in, tensors out.
"""
