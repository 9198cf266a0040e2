"""How much memory there is, and how to say so."""

import re
from contextlib import suppress
from pathlib import Path


def free_memory() -> int | None:
    """Bytes that this process can still have, in its container too; None where nobody says."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        found.append(int(re.findall(r"MemAvailable:\s+(\d+) kB", text)[0]) * 1024)
    with suppress(OSError, ValueError, IndexError):
        container = Path("/sys/fs/cgroup")
        used = re.findall(r"(?m)^anon (\d+)", (container / "memory.stat").read_text())[0]
        found.append(int((container / "memory.max").read_text()) - int(used))
    return min(found, default=None)


def readable(count: int) -> str:
    """A number of bytes to read.

    >>> readable(5_000_000), readable(3 * 2**30)
    ('4.8 MiB', '3.0 GiB')
    """
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
