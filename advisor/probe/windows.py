"""What Windows says of the machine. Advice runs there natively; training runs under WSL2, which is
Linux.
"""

from __future__ import annotations

import ctypes
from typing import ClassVar


class MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of sysinfoapi.h; sizes are bytes."""

    _fields_: ClassVar = [
        ("length", ctypes.c_uint32),
        ("load_percent", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("free", ctypes.c_uint64),
        ("total_page_file", ctypes.c_uint64),
        ("free_page_file", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("free_virtual", ctypes.c_uint64),
        ("free_extended_virtual", ctypes.c_uint64),
    ]


def memory() -> tuple[int | None, int | None]:
    """Installed and free memory in bytes, by GlobalMemoryStatusEx; None, None on other systems."""
    windll = getattr(ctypes, "windll", None)
    if windll is None:
        return None, None
    status = MemoryStatus(length=ctypes.sizeof(MemoryStatus))
    if not windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None, None
    return status.total, status.free
