"""What this machine lets us use: memory, disk and cores, as the container sees them rather than as the hardware has them."""

import ctypes
import os
import shutil
from pathlib import Path

# cgroup v2, then v1. A v1 limit near 2**63 means "none".
_MEMORY_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CPU_QUOTA_V2 = "/sys/fs/cgroup/cpu.max"
_CPU_QUOTA_V1 = ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us")

RELEASE_BYTES = 32 << 20  # how much may be freed until it is given back: by itself the allocator keeps it, in pieces


def memory_limit_bytes() -> int:
    """Bytes of memory this process tree may use: the smaller of the cgroup's limit and the machine's RAM."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _MEMORY_LIMIT_FILES:
        text = _read(name)
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def memory_used_bytes() -> int:
    """Bytes of memory resident for this process now; 0 where the system does not say."""
    fields = _read("/proc/self/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def anonymous_bytes() -> int:
    """Bytes of memory of this process now that no file stands behind; 0 where the system does not say."""
    fields = _read("/proc/self/statm").split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 2 else 0


def disk_free_bytes(folder: str | os.PathLike[str]) -> int:
    """Bytes free for us on the disk of `folder`, which need not exist yet."""
    path = Path(folder).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def cores() -> int:
    """Cores this process may run on: affinity, cut by the cgroup's quota; at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(_CPU_QUOTA_V2).split() or [_read(name) for name in _CPU_QUOTA_V1]
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit():  # "max" and -1 mean no quota
        count = min(count, -(-int(quota[0]) // int(quota[1])))
    return max(1, count)


def size_text(size_bytes: float) -> str:
    """A size as a person reads it: `412 MB`, `1.3 GB` (powers of ten, as disks are sold)."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size_bytes < 1000 or unit == "TB":
            break
        size_bytes /= 1000
    digits = 0 if unit == "bytes" or size_bytes >= 10 else 1
    return f"{size_bytes:.{digits}f} {unit}"


def _read(name: str) -> str:
    try:
        return Path(name).read_text().strip()
    except OSError:
        return ""


def release_freed() -> None:
    """Give memory that was freed back to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
