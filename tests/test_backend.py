"""The array library behind `xp`, what CuPy must offer, and which libraries files may import."""
import ast
import importlib
import inspect
import pathlib
import re
import sys
import types

import numpy as np
import pytest

import cupy_names
import strict_device
from tinymup import backend
from tinymup.backend import fused, generator, kept, to_device, to_host, use, xp

ROOT = pathlib.Path(__file__).parent.parent
FILES = [*sorted((ROOT / "tinymup").rglob("*.py")), ROOT / "train.py"]
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))


def tree(file):
    return ast.parse(file.read_text())


def dotted(node):
    """xp.linalg.norm, from the syntax tree; "" for anything that is not names joined by dots."""
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return owner and f"{owner}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def array_faults(source, table):
    """What a source asks of `xp` that the CuPy listed in `table` does not offer."""
    faults = []
    inner = {id(node.value) for node in ast.walk(source) if isinstance(node, ast.Attribute)}
    calls = {id(node.func): node for node in ast.walk(source) if isinstance(node, ast.Call)}
    for node in ast.walk(source):
        owner, _, name = dotted(node).partition("xp.")
        is_getattr = isinstance(node, ast.Call) and dotted(node.func) == "getattr"
        if is_getattr and dotted(node.args[0]) == "xp":
            faults.append("getattr(xp, …) hides which name is asked for")
        name = name.removeprefix("module.")
        known = owner in ("", "backend.") and name not in ("", "__name__", "__version__")
        if not known or id(node) in inner:
            continue
        arguments = calls.get(id(node), types.SimpleNamespace(args=[], keywords=[]))
        fixed = [a for a in arguments.args if not isinstance(a, ast.Starred)]
        keywords = [k.arg for k in arguments.keywords if k.arg]
        faults.append(cupy_names.fault(name, len(fixed), keywords, table))
    return [fault for fault in faults if fault]


def libraries(source):
    """The packages other than tinymup that a source imports, in functions too."""
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def import_faults(file, source):
    """Which libraries a source imports that are not for the file."""
    is_core = file.parent.name == "tinymup" and file.stem not in ("__main__", "vectors")
    return [name for name in libraries(source)
            if (name == "matplotlib" and file.stem != "plot")
            or (is_core and name not in {"numpy", *sys.stdlib_module_names})]


def says_cupy(source):
    """Whether a name, an import or a string says it; comments and docstrings may."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value) for node in ast.walk(source)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)}
    said = [getattr(node, field, None) for node in ast.walk(source) if id(node) not in docstrings
            for field in ("id", "attr", "name", "module", "value")]
    return any(isinstance(word, str) and "cupy" in word for word in said)


def has_gpu():
    try:
        import cupy
        return cupy.cuda.runtime.getDeviceCount() > 0
    except Exception:
        return False


# What the sources may say

@pytest.fixture(params=["the committed list", "the installed CuPy"])
def table(request):
    if request.param == "the committed list":
        return cupy_names.NAMES
    return cupy_names.parsed(cupy_names.list_names(pytest.importorskip("cupy")))


@each_file
def test_cupy_has_every_name_and_takes_every_argument(file, table):
    if file.name == "backend.py":   # it alone exchanges the module and uses what NumPy lacks
        table = {**table, "module": None, "asnumpy": None, "fuse": None}
    assert array_faults(tree(file), table) == []


@pytest.mark.parametrize("line, complaint", [
    ("y = xp.notafunction(x)", "no `notafunction`"),
    ("y = xp.linalg.multi_dot(x)", "no `linalg.multi_dot`"),
    ("y = backend.xp.notafunction(x)", "no `notafunction`"),
    ("y = xp.module.notafunction(x)", "no `notafunction`"),
    ("xp.module = numpy", "no `module`"),
    ("f = xp.notafunction", "no `notafunction`"),
    ("with xp.errstate(all='ignore'): pass", "no `errstate`"),
    ("y = xp.sum(x, where=m)", "does not take where="),
    ("xp.exp(x, out=y, where=m)", "does not take where="),
    ("y = xp.clip(x, min=0)", "does not take min="),
    ("y = xp.max(x, 0, None, True, 0)", "at most 4 positional"),
    ("y = getattr(xp, name)(x)", "getattr"),
])
def test_the_check_of_names_catches(line, complaint, table):
    fault, = array_faults(ast.parse(line), table)
    assert complaint in fault


@pytest.mark.parametrize("line", [
    "y = xp.exp(x, out=x) + xp.sum(x, axis=-1, keepdims=True) + xp.linalg.norm(x, axis=0)",
    "y = xp.float32(2) * xp.pi",
    "xp.matmul(*pair, out=y); xp.add.at(x, ids, y); xp.einsum('ij->i', x, optimize=True)",
    "xp.concatenate([x, y], axis=0).sum(axis=1)",
    "record = xp.module.__name__, xp.__version__",
])
def test_the_check_of_names_lets_pass_what_cupy_has(line, table):
    assert array_faults(ast.parse(line), table) == []


@each_file
def test_only_the_backend_says_cupy(file):
    assert says_cupy(tree(file)) == (file.name == "backend.py")


@pytest.mark.parametrize("line", ["import cupy", "from cupy import x", "cupy.exp(x)",
                                  "load('cupy')", "m.cupy", "f'{x} cupy'"])
def test_the_check_for_cupy_catches(line):
    assert says_cupy(ast.parse("'''A docstring.'''\n" + line))


def test_docstrings_and_comments_may_say_cupy():
    source = '"""Like cupy."""\ndef f():\n    """cupy"""\n    return 1  # cupy'
    assert not says_cupy(ast.parse(source))


@each_file
def test_the_core_needs_numpy_only_and_plot_alone_draws(file):
    assert import_faults(file, tree(file)) == []


@pytest.mark.parametrize("name, line", [
    ("network", "from tqdm import tqdm"), ("backend", "def f():\n    import cupy.linalg"),
    ("lab/run", "import matplotlib.pyplot as plt"), ("lab/sweep", "from matplotlib import pyplot")])
def test_the_check_of_imports_catches(name, line):
    assert len(import_faults(ROOT / f"tinymup/{name}.py", ast.parse(line))) == 1


@pytest.mark.parametrize("name, line", [
    ("lab/run", "import numpy\nfrom tqdm import tqdm"), ("lab/plot", "import matplotlib"),
    ("ops", "import math\nimport numpy\nfrom .backend import xp")])
def test_the_check_of_imports_lets_pass_what_is_allowed(name, line):
    assert import_faults(ROOT / f"tinymup/{name}.py", ast.parse(line)) == []


# Random numbers and the two crossings

def test_random_numbers_depend_on_seed_purpose_and_step_alone():
    first = generator(1, "data", 2).normal(size=8)
    assert (first == generator(1, "data", 2).normal(size=8)).all()
    for other in ((2, "data", 2), (1, "init", 2), (1, "data", 3), (2, "data", 1)):
        assert not (first == generator(*other).normal(size=8)).any()


def test_on_the_cpu_arrays_stay_where_they_are():
    host = np.ones(3)
    assert to_device(host) is host and to_host(host) is host
    assert to_device(host, dtype="float32").dtype == np.float32


# The choice of the device

@pytest.mark.skipif(has_gpu(), reason="a GPU is present")
def test_without_a_gpu_the_error_is_one_line_and_nothing_changes():
    with pytest.raises(ValueError) as error:
        use("gpu")
    message = str(error.value)
    assert "\n" not in message and "--device cpu" in message and "CuPy" in message
    assert xp.module is np


def test_without_cupy_the_error_is_one_line_and_nothing_changes(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ValueError, match="^--device gpu needs CuPy.*--device cpu$"):
        use("gpu")
    assert xp.module is np


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Puts a module `cupy` of the given source on the path, before any that is installed."""
    def call(source):
        (tmp_path / "cupy.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(sys.modules, "cupy", None)
        del sys.modules["cupy"]             # and monkeypatch brings back what was there before
        importlib.invalidate_caches()
    yield call
    use("cpu")


LINE = "=" * 64
FAILED_IMPORT = f"""
{LINE}
Failed to import CuPy.

If you installed CuPy via wheels (cupy-cudaXXX), make sure that the package matches with the CUDA.

Original error:
  ImportError: libnvrtc.so.12: cannot open shared object file: No such file or directory
{LINE}
"""
DEVICE = "class cuda:\n    class Device:\n        def use(self): pass\n"
BROKEN = {   # the source of a CuPy that does not work → the reason that `use` gives
    "its import fails with a report": (
        f"raise ImportError({FAILED_IMPORT!r})",
        "ImportError: libnvrtc.so.12: cannot open shared object file: No such file or directory"),
    "there is no driver": (
        DEVICE + "def ones(*args):\n"
        "    raise RuntimeError('cudaErrorInsufficientDriver: CUDA driver is too old')",
        "cudaErrorInsufficientDriver: CUDA driver is too old"),
    "a product fails": (
        DEVICE + "class ones:\n    def __init__(self, *args): pass\n"
        "    def __matmul__(self, other): raise ImportError('libcublas.so.12: not found')",
        "libcublas.so.12: not found"),
    "a kernel fails": (
        DEVICE + "class ones:\n    def __init__(self, *args): pass\n"
        "    def __matmul__(self, other): return self\n"
        "    def __add__(self, other): raise RuntimeError('Failure finding libnvrtc.so.12')",
        "Failure finding libnvrtc.so.12"),
    "an error without words": ("raise MemoryError", "MemoryError"),
    "an error of lines and blanks": (f"raise ImportError({chr(10) + LINE!r})", "ImportError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_error_names_the_cause_that_cupy_tells_last(name, install):
    source, reason = BROKEN[name]
    install(source)
    with pytest.raises(ValueError) as error:
        use("gpu")
    assert str(error.value) == (f"--device gpu needs CuPy and a CUDA GPU ({reason}); "
                                "see requirements.txt, or use --device cpu")
    assert xp.module is np


def test_a_cupy_that_computes_is_used_until_the_cpu_is_chosen(install):
    install(DEVICE + "from numpy import *")
    use("gpu")
    assert xp.module is sys.modules["cupy"]
    use("cpu")
    assert xp.module is np


@pytest.mark.skipif(not has_gpu(), reason="no GPU")
def test_with_a_gpu_arrays_go_there_and_come_back():
    try:
        use("gpu")
        there = to_device(np.arange(3.0))
        assert isinstance(there, xp.ndarray) and not isinstance(there, np.ndarray)
        assert (to_host(there + 1) == [1, 2, 3]).all()
    finally:
        use("cpu")
    assert backend.xp.module is np


# Blocks

@pytest.mark.parametrize("shape", [(1, 5), (7, 5), (1000, 600), (3, 10**6), (40_000, 1)])
def test_blocks_cover_the_first_axis_in_order_and_fit_the_cache(shape):
    x = np.empty(shape, "float32")
    parts = [x[i] for i in backend.blocks(x)]
    assert sum(map(len, parts)) == len(x) and all(map(len, parts))
    assert [part.ctypes.data for part in parts] == sorted(part.ctypes.data for part in parts)
    assert all(part.nbytes <= backend.BLOCK_BYTES or len(part) == 1 for part in parts)
    with strict_device.in_use():
        assert backend.blocks(xp.empty(shape, "float32")) == [slice(0, len(x))]     # one launch


# Fused functions

def scaled(x, y, *, a, b):
    """x ← a x + b y"""
    x *= a
    x += b * y


def test_on_numpy_a_fused_function_is_the_function_block_by_block():
    seen = []

    @fused
    def f(*arrays, **numbers):
        seen.append((arrays, numbers))
    x, y = np.empty((500, 300)), np.empty((500, 300))
    assert f(x, y, a=2, b=3) is None and f.__name__ == "f"
    assert len(seen) == len(backend.blocks(x)) > 1
    for i, (arrays, numbers) in zip(backend.blocks(x), seen, strict=True):
        assert list(numbers.items()) == [("a", 2), ("b", 3)]
        for array, whole in zip(arrays, (x, y), strict=True):
            assert strict_device.same_memory(array, whole[i])   # the arrays themselves, not copies


def test_a_fused_function_is_one_operation_on_the_device_with_the_same_results():
    f = fused(scaled)
    for numbers in [dict(a=2.0, b=3.0), dict(b=3.0, a=2.0), dict(a=5.0, b=0.1)]:
        x, y = np.random.default_rng(0).standard_normal((2, 500, 300)).astype("float32")
        with strict_device.in_use() as counts:
            device_x, device_y = to_device(x), to_device(y)
            counts.reset()
            f(device_x, device_y, **numbers)
            assert (counts.operations, counts.syncs) == (1, 0)
            result = to_host(device_x)
        expected = x * np.float32(numbers["a"]) + np.float32(numbers["b"]) * y
        f(x, y, **numbers)
        assert result.tobytes() == x.tobytes() == expected.tobytes()


def test_a_fused_function_is_compiled_once_per_device_and_not_per_number():
    made = []

    class Module(strict_device.Module):
        @staticmethod
        def fuse(*, kernel_name):
            made.append(kernel_name)
            return strict_device.Module.fuse(kernel_name=kernel_name)
    f, module = fused(scaled), xp.module
    try:
        first, second = Module(), Module()
        for xp.module in (first, second, first):
            for a in (2.0, 3.0):
                x = xp.ones(3)
                f(x, x.copy(), a=a, b=1.0)
                assert x.tolist() == [a + 1] * 3
        assert made == ["scaled", "scaled"]
    finally:
        xp.module = module


# Kept results

@pytest.fixture
def counted():
    """A kept function and the list of the calls that computed."""
    calls = []

    @kept
    def f(size, value):
        """An array."""
        calls.append((size, value))
        return xp.full(size, value)
    return f, calls


def test_a_kept_result_is_computed_once_per_arguments(counted):
    f, calls = counted
    first = f(3, 1.0)
    assert f(3, 1.0) is first and calls == [(3, 1.0)]
    assert f(4, 1.0).shape == (4,) and f(3, 2.0).tolist() == [2.0] * 3
    assert f(3, 1.0) is first and calls == [(3, 1.0), (4, 1.0), (3, 2.0)]
    assert f.__name__ == "f" and f.__doc__ == "An array."


def test_a_kept_result_of_one_device_is_not_given_to_another(counted):
    f, calls = counted
    host = f(3, 1.0)
    with strict_device.in_use():
        device = f(3, 1.0)
        assert isinstance(device, strict_device.DeviceArray) and f(3, 1.0) is device
    with strict_device.in_use():
        assert f(3, 1.0) is not device      # another device of the same kind
    assert f(3, 1.0) is host and isinstance(host, np.ndarray) and len(calls) == 3


# The package's fused functions on CuPy. It compiles nothing before it has a GPU, but it traces.

def fused_functions():
    """{name: the function} of all that stand under @fused in the package."""
    found = {}
    for file in FILES:
        for node in ast.walk(tree(file)):
            names = map(dotted, getattr(node, "decorator_list", []))
            if "fused" in [name.rpartition(".")[2] for name in names]:
                path = file.relative_to(ROOT).with_suffix("")
                module = importlib.import_module(".".join(path.parts))
                found[node.name] = getattr(module, node.name)
    return found


def arguments_of(function):
    """(names of its arrays, names of its numbers)"""
    by_kind = {kind: [] for kind in inspect._ParameterKind}
    for p in inspect.signature(function).parameters.values():
        by_kind[p.kind].append(p.name)
    positional, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    assert not any(by_kind[kind] for kind in by_kind if kind not in (positional, keyword))
    return by_kind[positional], by_kind[keyword]


def test_the_package_has_these_fused_functions():
    assert fused_functions().keys() == {"adamw", "momentum", "_gelu", "_gelu_backward"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", fused_functions())
def test_a_fused_function_of_the_package_equals_numpy_on_the_device(name, dtype):
    function = fused_functions()[name]
    arrays, numbers = arguments_of(function)
    rng = np.random.default_rng(0)
    host = [abs(rng.standard_normal((300, 257))).astype(dtype) for _ in arrays]
    assert len(backend.blocks(host[0])) > 2
    given = {number: 0.1 + 0.2 * i for i, number in enumerate(numbers)}
    with strict_device.in_use() as counts:
        device = [to_device(x) for x in host]
        counts.reset()
        function(*device, **given)
        assert counts.operations == 1
        results = [to_host(x) for x in device]
    function(*host, **given)
    for result, expected in zip(results, host):
        assert result.dtype == dtype and result.tobytes() == expected.tobytes()


def made_up(cupy, shape, dtype):
    """A CuPy array without a GPU: it points to memory that does not exist."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = cupy.cuda.UnownedMemory(0x1000, size, None, 0)
    return cupy.ndarray(shape, dtype, cupy.cuda.MemoryPointer(memory, 0))


class Recorder:
    """CuPy, with a list of what its `fuse` has made."""

    def __init__(self, cupy):
        self.cupy, self.kernels = cupy, []

    def __getattr__(self, name):
        return getattr(self.cupy, name)

    def fuse(self, **options):
        def decorate(function):
            self.kernels.append(self.cupy.fuse(**options)(function))
            return self.kernels[-1]
        return decorate


@pytest.mark.skipif(has_gpu(), reason="a GPU would follow the made-up pointers")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", fused_functions())
def test_cupy_fuses_the_functions_of_the_package_without_another_type(name, dtype, monkeypatch):
    cupy = pytest.importorskip("cupy")
    code = traced_by_cupy(cupy, fused_functions()[name], dtype, monkeypatch)
    types_used = set(re.findall(r"\w+(?= ?&)", " ".join(code)))
    assert types_used == {{"float32": "float", "float64": "double"}[dtype]}


def traced_by_cupy(cupy, function, dtype, monkeypatch):
    """The heads of the elementwise steps that CuPy makes of a function by its plain path."""
    arrays, numbers = arguments_of(function)
    recorder = Recorder(cupy)
    monkeypatch.setitem(vars(xp), "module", recorder)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):     # after the trace, for want of a GPU
        function(*(made_up(cupy, (4, 8), dtype) for _ in arrays), **dict.fromkeys(numbers, 0.5))
    fusion, = recorder.kernels
    assert fusion.new_fusion is None    # CuPy's silent way out after an error in the trace
    (kernel, _), = fusion._memo.values()
    assert kernel.out_params == ()      # no result beside the arrays that it writes to
    return [line for line in kernel.preamble.splitlines() if "__device__ void" in line]


def test_the_trace_on_cupy_shows_numbers_combined_in_float16_and_double(monkeypatch):
    cupy = pytest.importorskip("cupy")
    if has_gpu():
        pytest.skip("a GPU would follow the made-up pointers")

    def half(x, *, a, b):
        x *= a - b

    def double(x, *, a):
        x *= np.float64(3)
    for function, word in ((half, "float16"), (double, "double")):
        code = traced_by_cupy(cupy, fused(function), "float32", monkeypatch)
        assert any(word in line for line in code)
