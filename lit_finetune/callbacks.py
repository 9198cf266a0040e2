"""`callbacks`, the folder, under its installed name; in a wheel the folder itself stands here."""

from callbacks import *  # noqa: F403
