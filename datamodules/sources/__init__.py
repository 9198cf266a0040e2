"""Which pictures there are: folders, splits, class counts, files that cannot be used.

Paths in, lists of files with their labels out. Uses no Lightning.
"""
