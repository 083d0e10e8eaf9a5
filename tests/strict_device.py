"""A stand-in for CuPy that runs on NumPy: it tests the GPU path without a GPU.

    with strict_device.in_use() as counts:      # tinymup's `xp` now computes on DeviceArrays
        loss = train_step(...)
    counts.syncs, counts.operations             # waits for the GPU; calls that start work there

It is stricter than NumPy and CuPy. Only `asarray` lets a NumPy array in and only `asnumpy` lets one
out (`to_device` and `to_host` in the package). All else that would move data unseen raises
TypeError, and so does a name or an argument that CuPy lacks (cupy_names.py). The arithmetic is
NumPy's own on the same memory layout, so results are equal to the last bit.
"""
import contextlib
import itertools
import numbers
import operator
import types

import numpy as np

from cupy_names import NAMES, fault
from strict_fuse import ARITHMETIC, COMPARISONS, Trace

# The shape of the result, or an error, depends on the values, so CuPy reads a number back.
SYNCING = {"nonzero", "flatnonzero", "argwhere", "extract", "compress", "choose", "delete", "place",
           "bincount", "histogram", "histogram2d", "histogramdd", "unique", "unique_all",
           "unique_counts", "unique_inverse", "unique_values", "intersect1d", "setdiff1d",
           "setxor1d", "union1d", "ravel_multi_index", "asarray_chkfinite", "trim_zeros"}
# NumPy answers these with a Python number, CuPy with an array without axes.
ANSWERED_ON_DEVICE = {"allclose", "array_equal", "array_equiv", "count_nonzero"}
ARRAY_PARAMETERS = {"a", "b", "x", "x1", "x2", "y", "v", "arr", "ary", "array", "condition",
                    "indices", "values"}
DTYPES = "?bhilqBHILQefdFD"
SCATTER_DTYPES = "iILQefd"     # what CUDA adds atomically: neither int64 nor complex numbers


class Counts:
    """syncs: times the host waited for the device. operations: calls that start work there.

    Making a view starts none.
    """

    def __init__(self):
        self.reset()

    def reset(self):
        self.syncs = self.operations = 0


counts = Counts()


# The array

class DeviceArray:
    """An array that the host cannot see. It works with other device arrays and with scalars."""

    __slots__ = ("_array",)
    __hash__ = None             # as CuPy: == compares elements
    __array_ufunc__ = None      # CuPy computes np.exp(x) on the device; here np means the host

    def __init__(self, *args, **kwargs):
        raise TypeError("device arrays are made by the module's functions, "
                        "from NumPy arrays by asarray")

    def __getattr__(self, name):
        full = f"ndarray.{name}"
        if full not in NAMES:
            raise AttributeError(fault(full))
        value = getattr(self._array, name)
        if callable(value):
            return Function(full, getattr(np.ndarray, name), self)
        return wrapped(value)

    def __getitem__(self, index):
        index = checked(index)
        # CuPy gives a view without axes where NumPy would copy a scalar. So does NumPy for an
        # index with an Ellipsis.
        if not any(part is Ellipsis for part in index):
            index = (*index, Ellipsis)
        return call(operator.getitem, self, index)

    def __setitem__(self, index, value):
        index = checked(index)
        number_or_device_array(value)
        picked = any(isinstance(i, DeviceArray) for i in index)
        if isinstance(value, DeviceArray) and picked:
            places = np.arange(self.size).reshape(self.shape)[plain(index)]
            if np.unique(places).size < places.size:
                raise ValueError("one element assigned twice: on a GPU either may win")
        elif isinstance(value, DeviceArray) and same_memory(self._array[index], value._array):
            return              # the last act of x[i] += 1, which CuPy skips too
        call(operator.setitem, self, index, value)

    def __array__(self, *args, **kwargs):
        raise TypeError("implicit conversion of a device array to a NumPy array: use to_host")

    def __array_function__(self, function, *args):
        raise TypeError(f"np.{function.__name__} on a device array: "
                        f"use xp.{function.__name__}, or to_host first")

    def __reduce_ex__(self, protocol):
        raise TypeError("a device array can be neither pickled nor copied by `copy`: "
                        "use to_host or .copy()")

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def item(self, *index):
        counts.syncs += 1
        return self._array.item(*index)

    def tolist(self):
        counts.syncs += 1
        return self._array.tolist()


def wrapped(value):
    """NumPy's arrays and scalars as DeviceArrays, also in tuples and lists; all else as it is."""
    if isinstance(value, (tuple, list)):
        return (tuple if isinstance(value, tuple) else list)(map(wrapped, value))
    if not isinstance(value, (np.ndarray, np.generic)):
        return value
    new = object.__new__(DeviceArray)
    new._array = np.asarray(value)
    if new._array.dtype.char not in DTYPES:
        raise TypeError(f"CuPy has no arrays of {new._array.dtype}")
    return new


def plain(value):
    """The reverse of `wrapped`, which refuses NumPy arrays: they are on the host."""
    if isinstance(value, DeviceArray):
        return value._array
    if isinstance(value, np.ndarray):
        raise TypeError("a NumPy array where a device array is wanted: use to_device first")
    return type(value)(map(plain, value)) if isinstance(value, (tuple, list)) else value


def device_arrays(value):
    """All DeviceArrays in nested tuples and lists."""
    if isinstance(value, (tuple, list)):
        return [array for part in value for array in device_arrays(part)]
    return [value] if isinstance(value, DeviceArray) else []


def call(function, *args, **kwargs):
    """`function` on the NumPy arrays inside its arguments.

    A result that is one of the arguments (out=, +=) stays the same DeviceArray.
    """
    if Trace.current:
        raise TypeError("a fused function computes on its arguments, not on other device arrays")
    given = {id(array._array): array for array in device_arrays([*args, *kwargs.values()])}
    result = function(*map(plain, args), **{name: plain(value) for name, value in kwargs.items()})
    parts = result if isinstance(result, (tuple, list)) else [result]
    counts.operations += any(is_new(part, given) for part in parts)
    return given[id(result)] if id(result) in given else wrapped(result)


def is_new(result, given):
    """Whether a result took work. A view of an argument, a shape and a dtype take none."""
    if isinstance(result, np.ndarray) and id(result) not in given:
        return not any(np.may_share_memory(result, other._array) for other in given.values())
    return result is None or isinstance(result, (np.ndarray, np.generic))


def number_or_device_array(value):
    """Refuses all else. NumPy's scalars live on the host and become arguments of a kernel."""
    if not isinstance(value, (DeviceArray, numbers.Number, np.generic)):
        raise TypeError("a device array works with device arrays and numbers, "
                        f"not with {type(value).__name__}; to_device?")


def same_memory(a, b):
    """Whether two arrays are the same elements in the same order."""
    first, second = a.__array_interface__, b.__array_interface__
    return all(first[key] == second[key] for key in ("data", "shape", "strides", "typestr"))


def checked(index):
    """An index as a tuple. CuPy would move lists and NumPy arrays to the device unseen.

    A mask it counts first, which waits.
    """
    index = index if isinstance(index, tuple) else (index,)
    for part in index:
        if part is not None and part is not Ellipsis and not isinstance(
                part, (int, np.integer, slice, DeviceArray)):
            raise TypeError("a device array is indexed by ints, slices, None, ... and device "
                            f"arrays, not {type(part).__name__}")
        counts.syncs += isinstance(part, DeviceArray) and part.dtype == bool
    return index


def operation(function):
    """The method for an operator with another operand."""
    def method(self, other):
        number_or_device_array(other)
        return call(function, self, other)
    return method


def reflected(function):
    """The method for the same operator with self on the right."""
    def method(self, other):
        number_or_device_array(other)
        return call(function, other, self)
    return method


def waiting(function):
    """The method for a conversion to a Python object, which waits for the device."""
    def method(self, *args):
        counts.syncs += 1
        return function(self._array, *args)
    return method


for name in [*ARITHMETIC, "matmul"]:
    setattr(DeviceArray, f"__{name}__", operation(getattr(operator, f"__{name}__")))
    setattr(DeviceArray, f"__r{name}__", reflected(getattr(operator, f"__{name}__")))
    setattr(DeviceArray, f"__i{name}__", operation(getattr(operator, f"__i{name}__")))
for name in COMPARISONS:
    setattr(DeviceArray, f"__{name}__", operation(getattr(operator, f"__{name}__")))
for name in "neg pos abs invert".split():
    function = getattr(operator, f"__{name}__")
    setattr(DeviceArray, f"__{name}__", lambda self, function=function: call(function, self))
for function in (bool, int, float, complex, operator.index, str, repr, format):
    setattr(DeviceArray, f"__{function.__name__}__", waiting(function))


# Fused functions

class Fused:
    """What `fuse` makes of a function: one operation, traced once per types of its arguments."""

    def __init__(self, function):
        self.function, self.traces = function, {}

    def __call__(self, *args):
        for arg in args:
            if not isinstance(arg, DeviceArray) and type(arg) is not float:
                raise TypeError("a fused function takes device arrays and Python floats, "
                                f"not {type(arg).__name__}")
        for a, b in itertools.combinations([arg._array for arg in device_arrays(args)], 2):
            if np.may_share_memory(a, b) and not same_memory(a, b):
                raise ValueError("arguments of a fused function overlap: on a GPU it may read an "
                                 "element before or after it is written")
        kinds = tuple((arg.dtype.char, arg.ndim) if isinstance(arg, DeviceArray) else "number"
                      for arg in args)
        if kinds not in self.traces:
            are_arrays = [isinstance(arg, DeviceArray) for arg in args]
            self.traces[kinds] = Trace(self.function, are_arrays)
        self.traces[kinds].run([plain(arg) for arg in args])
        counts.operations += 1


# The module

class Function:
    """A function of the module, or a method of `owner`, held to CuPy's arguments."""

    def __init__(self, name, function, owner=None):
        self.name, self.function, self.owner = name, function, owner

    def __getattr__(self, method):
        return member(f"{self.name}.{method}", self.function)

    def __call__(self, *args, **kwargs):
        wrong = fault(self.name, len(args), kwargs)
        if wrong:
            raise TypeError(wrong)
        if Trace.current:
            return self.traced(*args, **kwargs)
        self.check_types(args, kwargs)
        last = self.name.rpartition(".")[2]
        counts.syncs += last in SYNCING or last == "where" and len(args) + len(kwargs) == 1
        function = self.function
        if last in ANSWERED_ON_DEVICE:
            def function(*args, **kwargs):
                return np.asarray(self.function(*args, **kwargs))
        return call(function, *([] if self.owner is None else [self.owner]), *args, **kwargs)

    def traced(self, *args, out=None, **kwargs):
        """The call within a fused function."""
        elementwise = isinstance(self.function, np.ufunc) and self.function.signature is None
        if not elementwise or self.function.nout > 1 or len(args) != self.function.nin or kwargs:
            raise TypeError(f"`{self.name}` so called is no elementwise operation with one result, "
                            "and a fused function takes nothing else")
        return Trace.current.record(self.function, args, out)

    def check_types(self, args, kwargs):
        """Refuses arguments of types that this function of CuPy does not take."""
        for word, value in [*zip(NAMES[self.name] or [], args), *kwargs.items()]:
            if word in ARRAY_PARAMETERS and isinstance(value, (tuple, list)):
                raise TypeError(f"`{self.name}` takes a device array as {word}, "
                                f"not a {type(value).__name__}")
        last = self.name.rpartition(".")[2]
        if last == "at" and args[0].dtype.char not in SCATTER_DTYPES:
            raise TypeError(f"CuPy's `{self.name}` does not know {args[0].dtype}")
        if last == "repeat" and isinstance(kwargs.get("repeats", args[-1]), DeviceArray):
            raise TypeError("CuPy repeats as often as numbers say, not as a device array says")


def member(name, owner):
    """The attribute of NumPy's `owner` that the module offers as `name`."""
    if name not in NAMES and not any(listed.startswith(f"{name}.") for listed in NAMES):
        raise AttributeError(fault(name))
    value = getattr(owner, name.rpartition(".")[2])
    if isinstance(value, types.ModuleType):
        return Namespace(f"{name}.", value)
    return Function(name, value) if callable(value) and not isinstance(value, type) else value


class Namespace:
    """A module of CuPy's, such as linalg."""

    def __init__(self, prefix, module):
        self.prefix, self.module = prefix, module

    def __getattr__(self, name):
        return member(self.prefix + name, self.module)


class Module(Namespace):
    """What `import cupy` would give."""

    ndarray = DeviceArray
    __name__, __version__ = "strict_device", np.__version__

    def __init__(self):
        super().__init__("", np)

    @staticmethod
    def asarray(a, dtype=None):
        """The way in. It copies, so that writing to one array never changes the other."""
        if isinstance(a, DeviceArray):
            return a if dtype is None or a.dtype == dtype else a.astype(dtype)
        if not isinstance(a, (np.ndarray, np.generic, numbers.Number)):
            raise TypeError("asarray takes a NumPy array, a device array or a number, "
                            f"not {type(a).__name__}")
        return call(lambda: np.array(a, dtype=dtype))

    @staticmethod
    def asnumpy(a):
        """The way out, which waits for the device."""
        if not isinstance(a, DeviceArray):
            raise TypeError(f"asnumpy takes a device array, not {type(a).__name__}: "
                            "this one is on the host already")
        counts.syncs += 1
        return a._array.copy()

    @staticmethod
    def fuse(*, kernel_name):
        """A decorator for elementwise functions of arrays and floats that return nothing."""
        if not kernel_name.isidentifier():
            raise ValueError(f"CuPy cannot compile a kernel of the name {kernel_name!r}")
        return Fused


@contextlib.contextmanager
def in_use():
    """tinymup computes on the stand-in, counting from zero, and then on what was in use before."""
    from tinymup.backend import xp
    before = xp.module
    xp.module = Module()
    counts.reset()
    try:
        yield counts
    finally:
        xp.module = before
