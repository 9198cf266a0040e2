"""Check the file names in an index: only files in its own folder are allowed."""

import re

_PLAIN = re.compile(r"[^/\\:\x00-\x1f\x7f]+")


def is_plain_name(name: object) -> bool:
    """Whether a name is a plain file name on every system: no path, drive or URL.

    >>> [is_plain_name(name) for name in ("chunk-0-0.bin", "../a", "s3://a", "C:a", "..", 3)]
    [True, False, False, False, False, False]
    """
    return isinstance(name, str) and name not in (".", "..") and bool(_PLAIN.fullmatch(name))
