"""The stand-in for CuPy refuses and counts what it says, so that passing on it proves something."""
import copy
import math
import pickle

import numpy as np
import pytest

import cupy_names
import strict_device
from strict_fuse import Trace
from tinymup import backend
from tinymup.backend import to_device, to_host, xp


@pytest.fixture
def counts():
    with strict_device.in_use() as counts:
        yield counts


HOST = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
IDS = np.array([3, 1, 1])

# Each on `a`: a host array for m = NumPy, a device array for m = `xp` on the stand-in.
EXPRESSIONS = {
    "operators": lambda m, a: (
        2 * a - a / 3 + 1 / (1 - a) + (a > 0) * abs(a) ** 2 - np.float32(0.1) * a),
    "matmul of views": lambda m, a: (
        a[:, ::2] @ a.T[1::2]
        + a[:, :3] @ a[:3, :4][:, :3].T[:, :4].swapaxes(0, 1).T @ a[:3, :4]),
    "out": lambda m, a: (
        m.matmul(a, a.T, out=m.empty((4, 4), dtype=a.dtype))
        + m.exp(a[:, :4], out=m.zeros_like(a[:, :4]))),
    "reductions": lambda m, a: (
        a.sum(axis=0) + m.mean(a, axis=0, keepdims=True) + a.max() + m.linalg.norm(a)
        + a.argmax(axis=0)),
    "choosing": lambda m, a: (
        m.where(a > 0, a, m.asarray(0.0, dtype=a.dtype)) + m.maximum(a, 0) + m.clip(a, -1, 1)),
    "gathering": lambda m, a: (
        m.take_along_axis(a, m.argmax(a, axis=1)[:, None], axis=1)
        + a[m.asarray(IDS)].mean(axis=1)[0]),
    "lists": lambda m, a: (
        m.concatenate([a, m.stack((a, a))[0]], axis=1).reshape(8, -1).transpose(1, 0)),
    "factors": lambda m, a: m.linalg.qr(a)[1],
    "complex": lambda m, a: (a * 1j).imag + (a + 0j).real,
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_results_equal_numpy_to_the_last_bit(name, counts):
    expected = EXPRESSIONS[name](np, HOST)
    got = EXPRESSIONS[name](xp, to_device(HOST))
    assert isinstance(got, xp.ndarray) and got.dtype == expected.dtype
    assert to_host(got).tobytes() == expected.tobytes()


def test_writing_in_place_equals_numpy_and_keeps_the_array(counts):
    host, device = HOST.copy(), to_device(HOST)
    before = device
    for a, m in ((host, np), (device, xp)):
        a += 1
        a[1:3] *= a[0]
        a[0, 0] = 7
        m.add.at(a, m.asarray(IDS), a[:3])
        m.multiply(a, a, out=a)
        a[a > 9] = 9
    assert device is before and xp.add(device, 0, out=device) is device
    assert to_host(device).tobytes() == host.tobytes()


def test_an_element_is_a_view_and_a_sum_is_an_array(counts):
    a = to_device(HOST)
    corner = a[0, 0]
    corner += 1
    assert to_host(a)[0, 0] == HOST[0, 0] + 1
    for scalar in (a.sum(), xp.sum(a), a[0, 0], a[0] @ a[0], xp.array_equal(a, a),
                   xp.count_nonzero(a)):
        assert isinstance(scalar, xp.ndarray) and scalar.shape == ()


def test_host_and_device_share_no_memory(counts):
    host = HOST.copy()
    device = to_device(host)
    host += 1
    to_host(device)[:] = 0
    assert (to_host(device) == HOST).all()


def test_a_device_array_need_not_come_again(counts):
    a = to_device(HOST)
    assert to_device(a) is a and to_device(a, xp.float64).dtype == np.float64


REFUSED = {
    "asarray": lambda a: np.asarray(a),
    "array of arrays": lambda a: np.array([a, a]),
    "scalar type": lambda a: np.float32(a.sum()),
    "ufunc": lambda a: np.exp(a),
    "function": lambda a: np.sum(a),
    "assigning to the host": lambda a: HOST.copy().__setitem__(..., a),
    "array + host": lambda a: a + HOST,
    "host + array": lambda a: HOST + a,
    "array @ host": lambda a: a @ HOST.T,
    "array == host": lambda a: a == HOST,
    "in place": lambda a: a.__iadd__(HOST),
    "host in place": lambda a: HOST.copy().__iadd__(a),
    "0-d host array": lambda a: a * np.array(2.0),
    "list operand": lambda a: a + [1.0] * 6,
    "host argument": lambda a: xp.maximum(a, HOST),
    "host out": lambda a: xp.exp(a, out=np.empty_like(HOST)),
    "host in a list": lambda a: xp.stack([a, HOST]),
    "list argument": lambda a: xp.exp([1.0, 2.0]),
    "list of indices": lambda a: a[[0, 1]],
    "host indices": lambda a: a[IDS],
    "host values": lambda a: a.__setitem__(0, HOST[0]),
    "list of values": lambda a: a.__setitem__(0, [1.0] * 6),
    "repeats on the device": lambda a: xp.repeat(to_device(IDS), to_device(IDS)),
    "hash": lambda a: {a: 1},
    "asarray of a list": lambda a: xp.asarray([1.0, 2.0]),
    "objects": lambda a: xp.asarray(np.array([None])),
    "to_host twice": lambda a: to_host(to_host(a)),
    "pickle": lambda a: pickle.dumps(a),
    "copy": lambda a: copy.deepcopy(a),
    "constructor": lambda a: xp.ndarray(HOST),
    "where=": lambda a: xp.exp(a, where=a > 0),
    "initial=": lambda a: xp.max(a, initial=0),
    "where= of a method": lambda a: a.sum(where=a > 0),
    "too many arguments": lambda a: xp.max(a, 0, None, True, 0),
    "int64 scatter": lambda a: xp.add.at(xp.zeros(4, dtype=xp.int64), to_device(IDS), 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses_what_mixes_converts_or_is_not_in_cupy(name, counts):
    a = to_device(HOST)
    with pytest.raises(TypeError):
        REFUSED[name](a)
    assert counts.syncs == (name == "to_host twice")


def test_an_element_cannot_be_assigned_twice(counts):
    a = to_device(HOST)
    with pytest.raises(ValueError, match="twice"):
        a[to_device(IDS)] = a[:3]
    a[to_device(IDS)] = 0


@pytest.mark.parametrize("name", ["errstate", "random", "fft", "load", "fromfile", "testing",
                                  "mgrid", "nosuchname"])
def test_names_that_cupy_lacks_do_not_exist(name, counts):
    with pytest.raises(AttributeError, match=name):
        getattr(xp, name)


@pytest.mark.parametrize("path", ["linalg.multi_dot", "multiply.at", "exp.at", "ndarray.tofile"])
def test_nested_names_that_cupy_lacks_do_not_exist(path, counts):
    owner, name = path.split(".")
    with pytest.raises(AttributeError, match=path):
        getattr(to_device(HOST) if owner == "ndarray" else getattr(xp, owner), name)


WAITING = {
    "float": lambda a: float(a.sum()),
    "int": lambda a: int(a.sum()),
    "if": lambda a: 1 if a.any() else 0,
    "item": lambda a: a[0, 0].item(),
    "tolist": lambda a: a.tolist(),
    "to_host": lambda a: to_host(a),
    "index": lambda a: [0, 1][(a[0, 0] > 99).sum()],
    "slice": lambda a: a[:(a[0] > 0).sum()],
    "format": lambda a: f"{a.sum():.3f}",
    "print": lambda a: str(a),
    "mask": lambda a: a[a > 0],
    "masked write": lambda a: a.__setitem__(a > 0, 0),
    "where": lambda a: xp.where(a > 0),
    "nonzero": lambda a: a.nonzero(),
}


@pytest.mark.parametrize("name", WAITING)
def test_waiting_for_the_device_is_counted(name, counts):
    a = to_device(HOST)
    assert counts.syncs == 0
    WAITING[name](a)
    assert counts.syncs == 1


def test_computing_does_not_wait(counts):
    a = to_device(HOST)
    for expression in EXPRESSIONS.values():
        expression(xp, a)
    for row in a:
        row += len(a)
    assert counts.syncs == 0


def test_operations_are_counted_and_views_are_not(counts):
    a = to_device(HOST)
    counts.reset()
    a.T, a[0], a[:, None], a.reshape(2, -1), xp.swapaxes(a, 0, 1), a.shape
    xp.broadcast_to(a, (2, 4, 6)), xp.split(a, 2)
    assert counts.operations == 0
    a + 1                                       # 1
    a += 1                                      # 2
    a[0] += 1                                   # 3: writing the row back onto itself is nothing
    xp.exp(a, out=a)                            # 4
    a.T.reshape(-1)                             # 5: cannot be a view
    a[0] = a[1]                                 # 6
    a.fill(0)                                   # 7
    a.sum()                                     # 8
    xp.linalg.qr(a)                             # 9
    a[xp.zeros(1, dtype=int)]                   # 11: the index, then the copy
    assert counts.operations == 11
    counts.reset()
    assert (counts.syncs, counts.operations) == (0, 0)


# Fused functions

def fused(function):
    """`function` as the stand-in's fuse makes it."""
    return xp.fuse(kernel_name="f")(function)


def mixture(x, y, z, a, b):
    """Operators, functions, a fresh value, in-place writes and a target that is an input."""
    xp.multiply(x, x, out=y)
    y *= a
    fresh = 1 - y
    fresh += b * x
    fresh /= 3
    xp.tanh(y, out=y)
    z += xp.sqrt(y if b is None else y ** 2)
    z -= (x > y) * fresh
    xp.maximum(z, -x, out=z)


def arrays(count, dtype=np.float32, shape=(4, 6)):
    return [np.random.default_rng(i).standard_normal(shape).astype(dtype) for i in range(count)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_fused_function_equals_numpy_to_the_last_bit_and_is_one_operation(dtype, counts):
    device = [to_device(x) for x in arrays(3, dtype)]
    host, f = arrays(3, dtype), fused(mixture)
    for repetition, numbers in enumerate([(0.3, 0.1), (1e-3, 1e9)], 1):     # traced once, run twice
        counts.reset()
        f(*device, *numbers)
        assert (counts.operations, counts.syncs) == (1, 0)
        xp.module, module = np, xp.module
        mixture(*host, *numbers)
        xp.module = module
        assert [to_host(x).tobytes() for x in device] == [x.tobytes() for x in host]
        assert len(f.traces) == 1


def test_a_fused_function_works_on_views_and_arrays_without_axes(counts):
    host = arrays(1)[0]
    a, three = to_device(host), to_device(np.float32(3))

    def f(x, y, number):
        x *= y
        x += number
    fused(f)(a[1:3], three, 0.5)
    assert np.array_equal(to_host(a)[1:3], host[1:3] * np.float32(3) + np.float32(0.5))
    assert np.array_equal(to_host(a)[[0, 3]], host[[0, 3]])


def test_a_fused_function_is_traced_once_per_types_and_keeps_what_it_read(counts):
    elsewhere = [2.0]

    def f(x, number):
        x *= elsewhere[0]
        x += number
    f, a, b = fused(f), xp.ones(3, "float32"), xp.ones(3)
    f(a, 1.0)
    elsewhere[0] = 5.0
    f(a, 10.0)                                  # still times 2, as the kernel compiled before
    f(b, 10.0)                                  # another dtype, another kernel
    assert a.tolist() == [16] * 3 and b.tolist() == [15] * 3
    f(xp.ones((1, 3)), 1.0)
    assert len(f.traces) == 3


def exported(function):
    """Calls function(x), keeps what it returns and returns nothing."""
    def call(x):
        kept.append(function(x))
    kept = []
    fused(call)(xp.ones(3))
    return kept[0]


CAPTURED = []
# Bodies of fused functions: x and y are arrays, a and b numbers.
NOT_FUSABLE = {
    "an element": lambda x, y, a, b: x[0],
    "a slice written to": lambda x, y, a, b: x.__setitem__(slice(1), y),
    "reshape": lambda x, y, a, b: x.reshape(-1),
    "the function reshape": lambda x, y, a, b: xp.reshape(x, -1),
    "transpose": lambda x, y, a, b: x.T,
    "shape": lambda x, y, a, b: x.shape,
    "length": lambda x, y, a, b: len(x),
    "iteration": lambda x, y, a, b: list(x),
    "sum": lambda x, y, a, b: x.sum(),
    "the function sum": lambda x, y, a, b: xp.sum(x),
    "a ufunc's method": lambda x, y, a, b: xp.add.reduce(x),
    "matmul": lambda x, y, a, b: x @ y,
    "the function matmul": lambda x, y, a, b: xp.matmul(x, y, out=x),
    "two results": lambda x, y, a, b: xp.frexp(x),
    "a fresh array": lambda x, y, a, b: xp.empty_like(x),
    "abs": lambda x, y, a, b: abs(x),
    "if on an array": lambda x, y, a, b: 1 if x else 0,
    "if on a comparison": lambda x, y, a, b: 1 if x > 0 else 0,
    "if on a number": lambda x, y, a, b: 1 if a else 0,
    "if on a number's comparison": lambda x, y, a, b: 1 if a == 0 else 0,
    "float": lambda x, y, a, b: float(a),
    "math": lambda x, y, a, b: math.sqrt(a),
    "NumPy's function": lambda x, y, a, b: np.sqrt(x),
    "NumPy's sum": lambda x, y, a, b: np.sum(x),
    "NumPy's number": lambda x, y, a, b: x.__imul__(np.float64(2)),
    "a NumPy array": lambda x, y, a, b: x.__imul__(HOST),
    "number times number": lambda x, y, a, b: a * b,
    "one less a number": lambda x, y, a, b: 1 - a,
    "a number's negative": lambda x, y, a, b: -a,
    "a number's root": lambda x, y, a, b: xp.sqrt(a),
    "a number written to": lambda x, y, a, b: a.__imul__(x),
    "a number as out": lambda x, y, a, b: xp.sqrt(x, out=a),
    "a captured array": lambda x, y, a, b: x.__imul__(CAPTURED[0]),
    "captured arrays only": lambda x, y, a, b: CAPTURED[0] + 1,
    "a captured array as out": lambda x, y, a, b: xp.sqrt(x, out=CAPTURED[0]),
    "a captured array's function": lambda x, y, a, b: xp.sqrt(CAPTURED[0]),
    "another fused function's value": lambda x, y, a, b: x.__imul__(CAPTURED[1]),
    "dtype=": lambda x, y, a, b: xp.sqrt(x, dtype="float32"),
    "a name that CuPy lacks": lambda x, y, a, b: xp.nosuchname(x),
}


@pytest.mark.parametrize("name", NOT_FUSABLE)
def test_a_fused_function_may_contain_elementwise_operations_on_its_arguments_only(name, counts):
    CAPTURED[:] = xp.ones((4, 6), "float32"), exported(lambda x: x + 1)

    def f(x, y, a, b):
        NOT_FUSABLE[name](x, y, a, b)           # not its result: returning is refused in any case
    with pytest.raises((TypeError, AttributeError)):
        fused(f)(*map(to_device, arrays(2)), 0.5, 0.25)
    assert counts.syncs == 0 and Trace.current is None
    xp.ones(3) + 1                              # the error has ended the trace


@pytest.mark.parametrize("function", [lambda x: x, lambda x: x + 1, lambda x: 0])
def test_a_fused_function_may_return_nothing(function, counts):
    with pytest.raises(TypeError, match="returns nothing"):
        fused(function)(xp.ones(3))


def scaled(x, a):
    """What any fused function may do."""
    x *= a


@pytest.mark.parametrize("argument", [
    1, True, None, "a", (1.0,), np.float64(2), np.float32(2), np.ones(3)], ids=repr)
def test_a_fused_function_takes_device_arrays_and_python_floats_only(argument, counts):
    f = fused(scaled)
    with pytest.raises(TypeError, match="takes device arrays and Python floats"):
        f(xp.ones(3), argument)
    f(xp.ones(3), 2.0)


def test_a_fused_function_takes_no_keywords(counts):
    with pytest.raises(TypeError, match="keyword"):
        fused(scaled)(xp.ones(3), a=2.0)


def test_a_fused_function_refuses_arguments_that_overlap_unless_they_are_the_same(counts):
    f, a = fused(scaled), xp.ones(6)
    with pytest.raises(ValueError, match="overlap"):
        f(a[1:], a[:-1])
    f(a, a)
    f(a[:3], a[3:])


def test_a_fused_function_does_not_broadcast_what_it_writes_to(counts):
    with pytest.raises(ValueError, match="broadcast"):
        fused(scaled)(xp.ones((1, 3)), xp.ones((2, 3)))


def test_a_kernel_needs_a_name_that_cuda_can_compile(counts):
    with pytest.raises(ValueError, match="<lambda>"):
        xp.fuse(kernel_name="<lambda>")
    with pytest.raises(TypeError):
        xp.fuse(scaled)


def test_what_was_in_use_comes_back_after_an_error():
    with pytest.raises(KeyError), strict_device.in_use():
        assert xp.module is not np
        raise KeyError
    assert backend.xp.module is np


def test_the_list_of_names_is_the_installed_cupys():
    cupy = pytest.importorskip("cupy")
    made_with = cupy_names.LIST[0].split()
    if (cupy.__version__, np.__version__) != (made_with[1], made_with[3]):
        pytest.skip("the list was made with other versions")
    assert cupy_names.LIST[1:] == cupy_names.list_names(cupy)
