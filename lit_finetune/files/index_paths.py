"""Names in an index: of files beside it, and of nothing else."""

import re

_PLAIN = re.compile(r"[^/\\:\x00-\x1f\x7f]+")


def is_plain_name(name: object) -> bool:
    """Whether a name is that of a file in a folder, on every system: no path, and no address.

    >>> [is_plain_name(name) for name in ("chunk-0-0.bin", "../a", "s3://a", "C:a", "..", 3)]
    [True, False, False, False, False, False]
    """
    return isinstance(name, str) and name not in (".", "..") and bool(_PLAIN.fullmatch(name))
