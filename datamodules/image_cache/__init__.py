"""Decode and resize images once, and cache them in memory or in files that later runs share.

Samples and a pipeline in, cached images out.
"""
