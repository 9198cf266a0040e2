"""`datamodules`, the folder, under its installed name; in a wheel the folder itself stands here."""

from datamodules import *  # noqa: F403
