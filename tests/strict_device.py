"""A stand-in for CuPy that runs on NumPy and is stricter than either: the GPU path, tested without a GPU.

    with strict_device.in_use() as counts:          # tinymup's `xp` now computes on DeviceArrays
        loss = train_step(...)
    counts.syncs, counts.operations                 # waits for the GPU; calls that start work there

Only `asarray` lets a NumPy array in and only `asnumpy` lets one out (`to_device`, `to_host` in the package); everything else
that would move data unseen raises TypeError. The arithmetic is NumPy's own on the same memory layout, so equal to the last bit.

Names and arguments that CuPy lacks are refused by the list in cupy_names.txt, which
`python tests/strict_device.py > cupy_names.txt` writes where CuPy is installed; no GPU needed.
"""
import contextlib
import inspect
import numbers
import operator
import pathlib
import re
import types

import numpy as np

# What CuPy forwards to the host, reads or writes as text, or NumPy would answer with an array of its own.
NOT_FOR_DEVICES = re.compile(r"load|save|txt|print|format|_repr|_str|2string|show_config|dump|tofile|tobytes"
                             r"|^from(buffer|file|function|iter|string|_dlpack)"
                             r"|^(base|data|flat|device|item|tolist|vectorize|poly1d|broadcast|flatiter|ndindex|ufunc"
                             r"|[cr]_|[mo]grid)$")
UFUNC_METHODS = {"reduce": "array, axis, dtype, out, keepdims", "accumulate": "array, axis, dtype, out"}
# The shape of the result, or an error, depends on the values: CuPy reads a number back before it can go on.
SYNCING = {"nonzero", "flatnonzero", "argwhere", "extract", "compress", "choose", "delete", "place", "bincount", "histogram",
           "histogram2d", "histogramdd", "unique", "unique_all", "unique_counts", "unique_inverse", "unique_values",
           "intersect1d", "setdiff1d", "setxor1d", "union1d", "ravel_multi_index", "asarray_chkfinite", "trim_zeros"}
# NumPy answers these with a Python number, CuPy with an array without axes.
ANSWERED_ON_DEVICE = {"allclose", "array_equal", "array_equiv", "count_nonzero"}
ARRAY_PARAMETERS = {"a", "b", "x", "x1", "x2", "y", "v", "arr", "ary", "array", "condition", "indices", "values"}
DTYPES = "?bhilqBHILQefdFD"
SCATTER_DTYPES = "iILQefd"              # what CUDA adds atomically: neither int64 nor complex numbers


# The list of what CuPy has

def parameters(function):
    """A CuPy function's parameters in brackets, without defaults; "" where CuPy does not tell."""
    try:
        kinds = {p.name: p.kind for p in inspect.signature(function).parameters.values()}
    except ValueError:                  # a method compiled from Cython tells in its docstring's first line
        found = re.match(r"\S*?\((.*)\)", (function.__doc__ or "").partition("\n")[0])
        words = [word.partition("=")[0].split()[-1] for word in found[1].split(",")] if found else []
        return f"({', '.join(words[1:])})" if found else ""
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    names = [marks.get(kind, "") + name for name, kind in kinds.items() if name != "self"]
    positional = [name for name, kind in kinds.items() if kind < inspect.Parameter.VAR_POSITIONAL and name != "self"]
    if inspect.Parameter.KEYWORD_ONLY in kinds.values() and inspect.Parameter.VAR_POSITIONAL not in kinds.values():
        names.insert(len(positional), "*")
    return f"({', '.join(names)})"


def list_names(cupy):
    """The lines of cupy_names.txt: the names this CuPy and this NumPy share, with the arguments that CuPy takes."""
    lines = []
    for prefix, ours, theirs in (("", np, cupy), ("linalg.", np.linalg, cupy.linalg), ("ndarray.", np.ndarray, cupy.ndarray)):
        for name in sorted(set(dir(ours)) & set(dir(theirs))):
            value = getattr(theirs, name)
            if name.startswith("_") or isinstance(value, types.ModuleType) or NOT_FOR_DEVICES.search(name):
                continue
            if isinstance(value, cupy.ufunc):
                inputs = [f"x{i + 1}" for i in range(value.nin)]
                lines.append(f"{prefix}{name}({', '.join(inputs + ['out'] * value.nout)}, *, casting, dtype)")
                lines += [f"{prefix}{name}.at(a, indices, b)"] * (value._scatter_op is not None)
                if name in ("add", "multiply"):
                    lines += [f"{prefix}{name}.{method}({words})" for method, words in UFUNC_METHODS.items()]
            else:
                lines.append(prefix + name + (parameters(value) if callable(value) and not isinstance(value, type) else ""))
    return lines


def parsed(lines):
    """{name: its parameters, or None for what is not called or does not tell}."""
    table = {}
    for line in lines:
        name, bracket, words = line.partition("(")
        table[name] = [word for word in words.rstrip(")").split(", ") if word] if bracket else None
    return table


def fault(name, positional=0, keywords=(), table=None):
    """What is wrong with calling CuPy's `name` with so many positional and these keyword arguments; None where nothing is."""
    table = NAMES if table is None else table
    if name not in table:
        return f"CuPy has no `{name}` for code that runs on a device"
    words = table[name]
    if words is None or any(word.startswith("**") for word in words):
        return None
    unknown = sorted(set(keywords) - set(words))
    if unknown:
        return f"CuPy's `{name}` does not take {', '.join(unknown)}="
    most = words.index("*") if "*" in words else len(words)
    if positional > most and not any(word[0] == "*" and word != "*" for word in words):
        return f"CuPy's `{name}` takes at most {most} positional arguments, not {positional}"
    return None


# The array

class Counts:
    """`syncs`: times the host waited for the device. `operations`: calls that start work there; making a view starts none."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.syncs = self.operations = 0


counts = Counts()


class DeviceArray:
    """An array the host cannot see: what cupy.ndarray does with other device arrays and with scalars, and no more."""

    __slots__ = ("_array",)
    __hash__ = None                     # as CuPy: == compares elements
    __array_ufunc__ = None              # CuPy would run np.exp(x) on the device; code that writes np there means the host

    def __init__(self, *args, **kwargs):
        raise TypeError("device arrays are made by the module's functions, from NumPy arrays by asarray")

    def __getattr__(self, name):
        full = f"ndarray.{name}"
        if full not in NAMES:
            raise AttributeError(fault(full))
        value = getattr(self._array, name)
        return Function(full, getattr(np.ndarray, name), self) if callable(value) else wrapped(value)

    def __getitem__(self, index):
        index = checked(index)
        # CuPy gives a view without axes where NumPy would give a copied scalar; the Ellipsis makes NumPy do the same.
        return call(operator.getitem, self, index if any(part is Ellipsis for part in index) else (*index, Ellipsis))

    def __setitem__(self, index, value):
        index = checked(index)
        number_or_device_array(value)
        picked = any(isinstance(i, DeviceArray) for i in index)
        if isinstance(value, DeviceArray) and picked:
            places = np.arange(self.size).reshape(self.shape)[plain(index)]
            if np.unique(places).size < places.size:
                raise ValueError("one element assigned twice: on a GPU either may win")
        elif isinstance(value, DeviceArray) and same_memory(self._array[index], value._array):
            return                      # the last act of x[i] += 1, which CuPy skips too
        call(operator.setitem, self, index, value)

    def __array__(self, *args, **kwargs):
        raise TypeError("implicit conversion of a device array to a NumPy array: use to_host")

    def __array_function__(self, function, *args):
        raise TypeError(f"np.{function.__name__} on a device array: use xp.{function.__name__}, or to_host first")

    def __reduce_ex__(self, protocol):
        raise TypeError("a device array can be neither pickled nor copied by `copy`: use to_host or .copy()")

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
    """NumPy's arrays and scalars as DeviceArrays, also inside tuples and lists; anything else as it is."""
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
        raise TypeError("a NumPy array where a device array is wanted: bring it over with to_device first")
    return type(value)(map(plain, value)) if isinstance(value, (tuple, list)) else value


def device_arrays(value):
    if isinstance(value, (tuple, list)):
        return [array for part in value for array in device_arrays(part)]
    return [value] if isinstance(value, DeviceArray) else []


def call(function, *args, **kwargs):
    """`function` on the NumPy arrays inside; a result that is one of the arguments (out=, +=) stays the same DeviceArray."""
    given = {id(array._array): array for array in device_arrays([*args, *kwargs.values()])}
    result = function(*map(plain, args), **{name: plain(value) for name, value in kwargs.items()})
    parts = result if isinstance(result, (tuple, list)) else [result]
    counts.operations += any(is_new(part, given) for part in parts)
    return given[id(result)] if id(result) in given else wrapped(result)


def is_new(result, given):
    """Whether a result took work: not a shape or a dtype, and no view of an argument. An argument itself was written to."""
    if isinstance(result, np.ndarray) and id(result) not in given:
        return not any(np.may_share_memory(result, other._array) for other in given.values())
    return result is None or isinstance(result, (np.ndarray, np.generic))


def number_or_device_array(value):
    """CuPy takes NumPy's scalars too: like Python's they live on the host and travel as a kernel's argument."""
    if not isinstance(value, (DeviceArray, numbers.Number, np.generic)):
        raise TypeError(f"a device array works with device arrays and numbers, not with {type(value).__name__}; to_device?")


def same_memory(a, b):
    return all(a.__array_interface__[key] == b.__array_interface__[key] for key in ("data", "shape", "strides", "typestr"))


def checked(index):
    """An index as a tuple. CuPy would send lists and NumPy arrays over unseen; a mask it counts first, which waits."""
    index = index if isinstance(index, tuple) else (index,)
    for part in index:
        if not (part is None or part is Ellipsis or isinstance(part, (int, np.integer, slice, DeviceArray))):
            raise TypeError(f"a device array is indexed by ints, slices, None, ... and device arrays, not {type(part).__name__}")
        counts.syncs += isinstance(part, DeviceArray) and part.dtype == bool
    return index


def operation(function):
    def method(self, other):
        number_or_device_array(other)
        return call(function, self, other)
    return method


def reflected(function):
    def method(self, other):
        number_or_device_array(other)
        return call(function, other, self)
    return method


def waiting(function):
    def method(self, *args):
        counts.syncs += 1
        return function(self._array, *args)
    return method


for name in "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split():
    setattr(DeviceArray, f"__{name}__", operation(getattr(operator, f"__{name}__")))
    setattr(DeviceArray, f"__r{name}__", reflected(getattr(operator, f"__{name}__")))
    setattr(DeviceArray, f"__i{name}__", operation(getattr(operator, f"__i{name}__")))
for name in "eq ne lt le gt ge".split():
    setattr(DeviceArray, f"__{name}__", operation(getattr(operator, f"__{name}__")))
for name in "neg pos abs invert".split():
    setattr(DeviceArray, f"__{name}__", lambda self, function=getattr(operator, f"__{name}__"): call(function, self))
for function in (bool, int, float, complex, operator.index, str, repr, format):
    setattr(DeviceArray, f"__{function.__name__}__", waiting(function))


# The module

class Function:
    """A function of the module, or a method of `self`, held to CuPy's arguments."""

    def __init__(self, name, function, self_array=None):
        self.name, self.function, self.self_array = name, function, self_array

    def __getattr__(self, method):
        return member(f"{self.name}.{method}", self.function)

    def __call__(self, *args, **kwargs):
        wrong = fault(self.name, len(args), kwargs)
        if wrong:
            raise TypeError(wrong)
        words = NAMES[self.name] or []
        for word, value in [*zip(words, args), *kwargs.items()]:
            if word in ARRAY_PARAMETERS and isinstance(value, (tuple, list)):
                raise TypeError(f"`{self.name}` takes a device array as {word}, not a {type(value).__name__}")
        last = self.name.rpartition(".")[2]
        if last == "at" and args[0].dtype.char not in SCATTER_DTYPES:
            raise TypeError(f"CuPy's `{self.name}` does not know {args[0].dtype}")
        if last == "repeat" and isinstance(kwargs.get("repeats", args[-1]), DeviceArray):
            raise TypeError("CuPy repeats as often as numbers say, not as a device array says")
        counts.syncs += last in SYNCING or last == "where" and len(args) + len(kwargs) == 1
        function = self.function
        if last in ANSWERED_ON_DEVICE:
            def function(*args, **kwargs):
                return np.asarray(self.function(*args, **kwargs))
        return call(function, *([] if self.self_array is None else [self.self_array]), *args, **kwargs)


def member(name, owner):
    """The attribute of NumPy's `owner` that the module offers as `name`."""
    if name not in NAMES and not any(listed.startswith(f"{name}.") for listed in NAMES):
        raise AttributeError(fault(name))
    value = getattr(owner, name.rpartition(".")[2])
    if isinstance(value, types.ModuleType):
        return Namespace(f"{name}.", value)
    return Function(name, value) if callable(value) and not isinstance(value, type) else value


class Namespace:
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
        """The way in: a copy of a NumPy array or a number, so that writing to one never changes the other."""
        if isinstance(a, DeviceArray):
            return a if dtype is None or a.dtype == dtype else a.astype(dtype)
        if not isinstance(a, (np.ndarray, np.generic, numbers.Number)):
            raise TypeError(f"asarray takes a NumPy array, a device array or a number, not {type(a).__name__}")
        counts.operations += 1
        return wrapped(np.array(a, dtype=dtype))

    @staticmethod
    def asnumpy(a):
        """The way out, which waits for the device."""
        if not isinstance(a, DeviceArray):
            raise TypeError(f"asnumpy takes a device array, not {type(a).__name__}: this one is on the host already")
        counts.syncs += 1
        return a._array.copy()


@contextlib.contextmanager
def in_use():
    """Lets tinymup compute on the stand-in, counting from zero, and puts back what was in use before."""
    from tinymup.backend import xp
    before = xp.module
    xp.module = Module()
    counts.reset()
    try:
        yield counts
    finally:
        xp.module = before


if __name__ == "__main__":
    import cupy
    print(f"# {cupy.__version__} CuPy, {np.__version__} NumPy: the names both have and the arguments CuPy takes")
    print("\n".join(list_names(cupy)))
else:
    LIST = (pathlib.Path(__file__).parent / "cupy_names.txt").read_text().splitlines()
    NAMES = parsed(line for line in LIST if not line.startswith("#"))
