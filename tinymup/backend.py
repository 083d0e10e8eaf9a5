"""The array library: NumPy on a CPU, CuPy on an NVIDIA GPU.

Every other file writes `xp.exp(x)`, and the same line runs on both. Only `to_device` and `to_host`
move data between host and device, so a search for these names finds every transfer and every place
where the program waits for the GPU. Read next: scaling.py, the subject."""
import functools
import importlib
import zlib

import numpy


class ArrayModule:
    """Stands for the array module in use, which `use` sets: `xp.exp` is NumPy's or CuPy's `exp`."""
    module = numpy

    def __getattr__(self, name):
        return getattr(self.module, name)


xp = ArrayModule()
BLOCK_BYTES = 1 << 17   # of `blocks`: well inside the L2 cache of one core

def use(device):
    """Computes on "cpu" (NumPy) or "gpu" (CuPy) from now on.
    Errors: ValueError if CuPy is missing, finds no GPU, or cannot run a kernel or a product."""
    if device == "cpu":
        xp.module = numpy
        return
    try:
        cupy = importlib.import_module("cupy")
        one = cupy.ones((2, 2), "float32")
        (one @ one + 1).sum().item()                  # needs cuBLAS and the kernel compiler
    except Exception as error:
        lines = filter(None, (line.strip("= ") for line in str(error).splitlines()))
        *_, reason = [type(error).__name__, *lines]   # the last line of CuPy's reports is the cause
        raise ValueError(f"--device gpu needs CuPy and a CUDA GPU ({reason}); "
                         "see requirements.txt, or use --device cpu") from None
    xp.module = cupy


def to_device(array, dtype=None):
    """A NumPy array as an array of the device in use. On the CPU this makes no copy."""
    return xp.asarray(array, dtype=dtype)

def to_host(array):
    """A device array as a NumPy array. On a GPU this waits for all work queued so far."""
    return xp.module.asnumpy(array) if hasattr(xp.module, "asnumpy") else numpy.asarray(array)


def generator(seed, purpose, step=0):
    """Random numbers drawn on the host. They depend on nothing but (seed, purpose, step)."""
    return numpy.random.default_rng([seed, zlib.crc32(purpose.encode()), step])


def blocks(x):
    """Slices of the first axis of x, each small enough to stay in cache. A GPU gets one slice."""
    rows = len(x) if xp.module is not numpy else max(1, len(x) * BLOCK_BYTES // x.nbytes)
    return [slice(i, i + rows) for i in range(0, len(x), rows)]

def fused(f):
    """Runs an elementwise function as one kernel on a GPU, and on the CPU block by block.
    f takes arrays of one shape by position and Python floats by keyword, and writes to its arrays.
    It must not combine two of the floats: CuPy would do that in half precision."""
    @functools.cache
    def kernel(module, count, *names):                # CuPy's kernels take no keywords
        return module.fuse(kernel_name=f.__name__)(
            lambda *args: f(*args[:count], **dict(zip(names, args[count:]))))

    @functools.wraps(f)
    def call(*arrays, **numbers):
        if hasattr(xp.module, "fuse"):
            return kernel(xp.module, len(arrays), *numbers)(*arrays, *numbers.values())
        for i in blocks(arrays[0]):
            f(*(array[i] for array in arrays), **numbers)
    return call

def kept(f):
    """f with its results kept per device and arguments: a constant array is computed once."""
    values = functools.lru_cache(maxsize=16)(lambda module, *args: f(*args))
    return functools.wraps(f)(lambda *args: values(xp.module, *args))
