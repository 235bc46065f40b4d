"""What this process takes of the board's memory."""

from __future__ import annotations

import re
from typing import Any, Dict, Optional

from .kernel import read_text

_STATUS = "/proc/self/status"


def parse_status_mb(status: str, field: str) -> Optional[float]:
    """A field of /proc/<pid>/status such as `VmHWM:     2052 kB`, in MiB; None where it is absent."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match.group(1)) / 1024 if match else None


def resident_memory_mb() -> Optional[float]:
    """Resident memory now, in MiB; None where the kernel does not tell."""
    return parse_status_mb(read_text(_STATUS), "VmRSS")


def peak_memory() -> Dict[str, Any]:
    """The highest resident memory of this process so far.

    Read from VmHWM, which starts anew with each program; `getrusage` would start at the peak of the process
    that started this one.

    Returns:
        `peak_memory_mb`; where the kernel does not tell, it is None and `peak_memory_reason` says why.
    """
    peak_memory_mb = parse_status_mb(read_text(_STATUS), "VmHWM")
    if peak_memory_mb is None:
        return {"peak_memory_mb": None, "peak_memory_reason": f"{_STATUS} has no VmHWM on this kernel"}
    return {"peak_memory_mb": peak_memory_mb}
