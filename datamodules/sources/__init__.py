"""Find the images of a dataset: folders, splits, class counts, unusable files.

Paths in, lists of files with their labels out.
"""
