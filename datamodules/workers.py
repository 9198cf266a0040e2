"""The number of worker processes that load images."""

import os

MAX_WORKERS = 4


def spare_cpus(num_devices: int) -> int:
    """The number of workers that this machine has CPUs for, for each device."""
    has_affinity = hasattr(os, "sched_getaffinity")  # not on macOS, not on Windows
    cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return workers_per_device(cpus, num_devices)


def workers_per_device(num_cpus: int, num_devices: int) -> int:
    """The number of workers for each device, which has one process of its own: at most 4.

    >>> [workers_per_device(num_cpus, num_devices=2) for num_cpus in (1, 2, 6, 64)]
    [0, 0, 2, 4]
    """
    return max(0, min(MAX_WORKERS, num_cpus // num_devices - 1))
