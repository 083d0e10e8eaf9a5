"""The one seam between this package and the array library: NumPy on a CPU, CuPy on a GPU.

Every other file writes `xp.exp(x)` and runs on both. Nothing moves between host and device except through
`to_device` and `to_host`, so a search for those two names finds every transfer and every wait for the GPU.
"""
import ctypes
import importlib
import sys
import zlib

import numpy


class ArrayModule:
    """`xp.name` is the name of the array module in use; `use` exchanges the module."""

    module = numpy

    def __getattr__(self, name):
        return getattr(self.module, name)


xp = ArrayModule()


def use(device):
    """Computes on "cpu" (NumPy) or "gpu" (CuPy) from now on.

    Errors: ValueError where CuPy is not installed or finds no GPU.
    """
    if device == "cpu":
        xp.module = numpy
        return
    try:
        cupy = importlib.import_module("cupy")
        cupy.cuda.Device().use()
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"--device gpu needs CuPy and a CUDA GPU ({reason}); see requirements.txt, or use --device cpu") from None
    xp.module = cupy


def to_device(array, dtype=None):
    """A NumPy array, copied to the device in use (on the CPU: itself)."""
    return xp.asarray(array, dtype=dtype)


def to_host(array):
    """A device array as a NumPy array. On a GPU this waits for everything queued so far."""
    return xp.module.asnumpy(array) if hasattr(xp.module, "asnumpy") else numpy.asarray(array)


def blocks(x):
    """Slices of x's first axis, so many rows at a time that what is computed on them one operation after the other stays in a
    core's cache. On a GPU a single slice: there an operation costs its launch.
    """
    rows = len(x) if xp.module is not numpy else max(1, len(x) * BLOCK_BYTES // x.nbytes)
    return [slice(i, i + rows) for i in range(0, len(x), rows)]


BLOCK_BYTES = 1 << 17


def generator(seed, purpose, step=0):
    """The random numbers of (seed, what they are for, step): drawn on the host, hence equal on every device.

    Being a function of its arguments it has no state to save: a resumed run draws what the first one would have drawn.
    """
    return numpy.random.default_rng([seed, zlib.crc32(purpose.encode()), step])


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3   # names and numbers of glibc's malloc.h


def keep_freed_memory():
    """Asks glibc to keep what is freed for the next array instead of handing it back to the system.

    A step allocates the same arrays as the one before, and fresh pages cost more than the arithmetic done in them: GELU on
    1024 × 2048 took 3.7 ms, with this 1.8 ms. Does nothing where the C library is another one; CuPy's pool does it by itself.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        for parameter, value in (M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, 1 << 26):
            libc.mallopt(parameter, value)

