"""The free memory, and numbers of bytes as text."""

import re
from contextlib import suppress
from pathlib import Path


def free_memory() -> int | None:
    """Bytes that this process can still allocate, in its container too; None if unknown."""
    limits = []
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        limits.append(int(re.findall(r"MemAvailable:\s+(\d+) kB", text)[0]) * 1024)
    with suppress(OSError, ValueError, IndexError):
        container = Path("/sys/fs/cgroup")
        used = re.findall(r"(?m)^anon (\d+)", (container / "memory.stat").read_text())[0]
        limits.append(int((container / "memory.max").read_text()) - int(used))
    return min(limits, default=None)


def format_bytes(count: int) -> str:
    """A number of bytes in a readable unit.

    >>> format_bytes(5_000_000), format_bytes(3 * 2**30)
    ('4.8 MiB', '3.0 GiB')
    """
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
