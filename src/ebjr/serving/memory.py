"""Return the memory of answered requests to the system; glibc would keep it."""

import ctypes
from contextlib import suppress

from ebjr.serving.admission import Admission

M_MMAP_THRESHOLD, LARGE_PIECE_BYTES = -3, 4 * 2**20  # the first is glibc's constant
MUCH_BYTES = 16 * 2**20  # held by requests: what they leave behind is worth a look


def return_large_blocks() -> None:
    """Let glibc return large blocks as they are freed."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, LARGE_PIECE_BYTES)


def return_freed() -> None:
    """Return the free memory between used blocks; takes milliseconds."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def return_ebbed(admission: Admission) -> None:
    """Return freed memory once requests that held much are answered."""
    if admission.ebbed(MUCH_BYTES):
        return_freed()
