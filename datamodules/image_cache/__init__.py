"""Pictures decoded and resized once, kept in memory or in files that later runs share.

A dataset in, the same dataset with its pictures at hand out.
"""
