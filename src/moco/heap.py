"""How this process takes memory from the system and gives it back."""

import contextlib
import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h


def settle() -> None:
    """Ask for memory in pages that are cheap to use again, on Linux, before the first tensor is made.

    Tensors of a batch are freed and made anew at every step. Left to itself the system takes back the
    pages of each and clears fresh ones: a third of the time of views of small images, a few hundredths
    of a training step. What the user has set for torch or malloc stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks once: large tensors in huge pages
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, 512 << 20)
        mallopt(_MMAP_THRESHOLD, 32 << 20)
