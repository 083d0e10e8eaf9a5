"""The trace of a function by `cupy.fuse`, for the stand-in for CuPy in strict_device.py.

CuPy calls a fused function once, without data, and compiles the elementwise operations that it sees
into one kernel. From then on it runs the kernel, whatever the function reads from elsewhere.
"""
import itertools
import operator

ARITHMETIC = "add sub mul truediv floordiv mod pow and or xor lshift rshift".split()
COMPARISONS = "eq ne lt le gt ge".split()


class Trace:
    """A fused function as CuPy sees it: the elementwise steps of one call of it.

    A step is (function, inputs, out, result). An input is a `Value` or a Python number, out and
    result are a `Value` each, or out is None. are_arrays: for each argument, array or number.
    """

    current = None              # the trace being recorded

    def __init__(self, function, are_arrays):
        self.steps, self.places = [], itertools.count()
        values = [Value(self, is_array) for is_array in are_arrays]
        Trace.current = self
        try:
            returned = function(*values)
        finally:
            Trace.current = None
        if returned is not None:
            raise TypeError("a fused function returns nothing: CuPy would copy what it returns")

    def record(self, function, inputs, out=None, in_place=False):
        """Adds a step and returns its result."""
        if self is not Trace.current:
            raise TypeError("a value of a fused function is used outside of it")
        if any(type(x) not in (Value, int, float) or type(x) is Value and x.trace is not self
               for x in inputs):
            raise TypeError("a fused function computes with its arguments and Python numbers only")
        if not any(isinstance(x, Value) and x.is_array for x in inputs):
            raise TypeError("numbers combined in a fused function: CuPy would do this in float16; "
                            "combine them in Python before the call")
        if out is not None and not (isinstance(out, Value) and out.is_array):
            raise TypeError("out= of a fused function must be one of its arrays")
        target = inputs[0] if in_place else out
        result = target if target is not None else Value(self, True)
        self.steps.append((function, inputs, out, result))
        return result

    def run(self, args):
        """Computes the steps on NumPy arrays and Python floats."""
        values = dict(enumerate(args))

        def read(x):
            return values[x.place] if isinstance(x, Value) else x
        for function, inputs, out, result in self.steps:
            target = {} if out is None else {"out": read(out)}
            values[result.place] = function(*map(read, inputs), **target)


class Value:
    """An array or a number inside a fused function, before there are any data.

    It has elementwise operators. It has no shape, no elements and no truth value.
    """

    __hash__ = None
    __array_ufunc__ = None

    def __init__(self, trace, is_array):
        self.trace, self.place, self.is_array = trace, next(trace.places), is_array

    def __bool__(self):
        raise TypeError("a fused function is traced without data: no `if` on its values")

    def __array__(self, *args, **kwargs):
        raise TypeError("a fused function is traced without data: use xp, not np")


def fusing(function, in_place=False, reflect=False):
    """The method of `Value` for an operator."""
    def method(self, *others):
        if in_place and not self.is_array:
            raise TypeError("a fused function cannot write to a number")
        inputs = (*others, self) if reflect else (self, *others)
        return self.trace.record(function, inputs, in_place=in_place)
    return method


for name in ARITHMETIC:
    setattr(Value, f"__{name}__", fusing(getattr(operator, f"__{name}__")))
    setattr(Value, f"__r{name}__", fusing(getattr(operator, f"__{name}__"), reflect=True))
    setattr(Value, f"__i{name}__", fusing(getattr(operator, f"__i{name}__"), in_place=True))
for name in [*COMPARISONS, "neg", "invert"]:
    setattr(Value, f"__{name}__", fusing(getattr(operator, f"__{name}__")))
