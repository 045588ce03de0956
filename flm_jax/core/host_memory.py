"""How the C library hands memory to programs on CPUs."""

import ctypes
import glob
import os

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_MADV_HUGEPAGE, _HUGE_PAGE = 14, 2**21  # of Linux's mman.h; bytes
_KEPT = 2**31 - 1  # bytes of freed memory that a process may keep, 2 GiB
_OWN = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
_CARDS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")


def on_cpu(environment=os.environ) -> bool:
    """Whether JAX will compute on the CPU, as far as can be seen before it starts."""
    named = environment.get("JAX_PLATFORMS", "")
    return named == "cpu" or not (named or any(glob.glob(card) for card in _CARDS))


def tune_malloc(environment=os.environ) -> bool:
    """Lets a process that computes on the CPU keep its memory, in huge pages, before JAX starts.

    XLA takes the temporaries of a program anew in every call. glibc gets large pieces from the
    kernel and gives them back at once, so that the kernel clears every page of them in every train
    step, which takes a sixth of its time. Here they come from one heap, of whose end up to 2 GiB
    are kept while free. Its first 2 GiB are of pages of 2 MiB where Linux gives those to programs
    that ask (`/sys/kernel/mm/transparent_hugepage/enabled`): products then wait less for addresses.
    Nothing is changed where the environment sets glibc's malloc itself, on other C libraries, and
    on machines with accelerators.

    Returns:
      Whether memory is kept.
    """
    if not on_cpu(environment) or any(name in environment for name in _OWN):
        return False
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    # Heaps of further threads are small, and large pieces would be mapped in spite of _MMAP_MAX.
    wanted = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: _KEPT}
    kept = all([mallopt(name, value) for name, value in wanted.items()])
    if kept:
        _ask_for_huge_pages(libc)
    return kept


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Extends the heap by what is kept of it, and asks for huge pages there.

    No page of it is in use before something is written to it.
    """
    size = _KEPT - 32 * _HUGE_PAGE  # with what is free already, still no more than is kept
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    piece = libc.malloc(size)
    if not piece:  # more than the process may have
        return
    start = -(-piece // _HUGE_PAGE) * _HUGE_PAGE
    # Without effect on kernels that have no huge pages.
    libc.madvise(start, (piece + size - start) // _HUGE_PAGE * _HUGE_PAGE, _MADV_HUGEPAGE)
    libc.free(piece)
