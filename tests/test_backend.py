"""The seam to the array library: who may cross it, what CuPy must offer, and that the files import in one direction only."""
import ast
import pathlib
import sys
import types

import numpy as np
import pytest

import strict_device
from tinymup import backend
from tinymup.backend import generator, to_device, to_host, use, xp

ROOT = pathlib.Path(__file__).parent.parent
FILES = [*sorted((ROOT / "tinymup").glob("*.py")), *ROOT.glob("train.py")]
RANKS = {
    "__init__": 0, "backend": 0, "scaling": 0, "unit_scaling": 0,
    "number_formats": 1, "orthogonalize": 1, "data": 1, "initialize": 1, "checkpoint": 1,
    "ops": 2,
    "mlp": 3, "transformer": 3, "optim": 3,
    "network": 4,
    "run": 5, "coord_check": 5,
    "worker": 6, "sweep": 6,
    "plot": 7,
    "train": 8,
}


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
        if isinstance(node, ast.Call) and dotted(node.func) == "getattr" and dotted(node.args[0]) == "xp":
            faults.append("getattr(xp, …) hides which name is asked for")
        name = name.removeprefix("module.")
        if owner not in ("", "backend.") or name in ("", "__name__", "__version__") or id(node) in inner:
            continue
        arguments = calls.get(id(node), types.SimpleNamespace(args=[], keywords=[]))
        fixed = [a for a in arguments.args if not isinstance(a, ast.Starred)]
        faults.append(strict_device.fault(name, len(fixed), [k.arg for k in arguments.keywords if k.arg], table))
    return [fault for fault in faults if fault]


def package_imports(source):
    """The files of this package that a source imports, in whatever function the import stands; and other packages.

    What stands under `if __name__ == "__main__"` is not the file but a program above it, and does not count.
    """
    ours, others = set(), set()
    program = {id(inner) for node in source.body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for inner in ast.walk(node)}
    for node in (node for node in ast.walk(source) if id(node) not in program):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(part for part in ("tinymup" * bool(node.level), node.module) if part)
            names = [f"tinymup.{alias.name}" for alias in node.names] if module == "tinymup" else [module]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            (ours if first == "tinymup" else others).add((rest.partition(".")[0] or "__init__") if first == "tinymup" else first)
    return ours, others


def import_faults(name, source):
    ours, others = package_imports(source)
    faults = [f"{name} (rank {RANKS[name]}) imports {other} (rank {RANKS.get(other, 'none')})"
              for other in sorted(ours) if RANKS.get(other, 99) >= RANKS[name]]
    return faults + ([f"{name} imports matplotlib, which is for plot alone"] if "matplotlib" in others and name != "plot" else [])


def says_cupy(source):
    """Whether a name, an import or a string says it; comments and docstrings may."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(source)
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


@pytest.fixture(params=["the committed list", "the installed CuPy"])
def table(request):
    if request.param == "the committed list":
        return strict_device.NAMES
    return strict_device.parsed(strict_device.list_names(pytest.importorskip("cupy")))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_cupy_has_every_name_and_takes_every_argument(file, table):
    if file.name == "backend.py":               # it alone exchanges the module, and asks for what NumPy does not have
        table = {**table, "module": None, "asnumpy": None}
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


def test_the_check_of_names_lets_pass_what_cupy_has(table):
    source = """
y = xp.exp(x, out=x) + xp.sum(x, axis=-1, keepdims=True) + xp.linalg.norm(x, axis=0) + xp.float32(2) * xp.pi
xp.matmul(*pair, out=y); xp.add.at(x, ids, y); xp.einsum("ij->i", x, optimize=True); xp.concatenate([x, y], axis=0).sum(axis=1)
record = xp.module.__name__, xp.__version__
"""
    assert array_faults(ast.parse(source), table) == []


@pytest.mark.parametrize("file", [file for file in FILES if file.name != "backend.py"], ids=lambda file: file.name)
def test_only_the_backend_says_cupy(file):
    assert not says_cupy(tree(file))


@pytest.mark.parametrize("line", ["import cupy", "from cupy import x", "cupy.exp(x)", "load('cupy')", "m.cupy", "f'{x} cupy'"])
def test_the_check_for_cupy_catches(line):
    assert says_cupy(ast.parse("'''A docstring.'''\n" + line))


def test_docstrings_and_comments_may_say_cupy():
    assert not says_cupy(ast.parse('"""Like cupy."""\ndef f():\n    """cupy"""\n    return 1  # cupy'))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_imports_only_from_smaller_ranks(file):
    assert file.stem in RANKS, f"{file.name} has no rank: give it one in RANKS here and in the design's table"
    assert import_faults(file.stem, tree(file)) == []


@pytest.mark.parametrize("name, line", [
    ("ops", "from .run import run"),
    ("ops", "from . import optim"),
    ("scaling", "from tinymup.backend import xp"),
    ("mlp", "import tinymup.optim"),
    ("run", "def f():\n    from tinymup import plot"),
    ("backend", "from .unheardof import x"),
    ("run", "import matplotlib.pyplot as plt"),
    ("sweep", "from matplotlib import pyplot"),
])
def test_the_check_of_imports_catches(name, line):
    assert len(import_faults(name, ast.parse(line))) == 1


def test_the_check_of_imports_lets_pass_what_points_down():
    assert import_faults("run", ast.parse("import numpy\nfrom . import mlp, ops\nfrom .optim import Optimizer")) == []
    assert import_faults("plot", ast.parse("import matplotlib.pyplot as plt\nimport tinymup.run")) == []


def test_random_numbers_depend_on_seed_purpose_and_step_alone():
    first = generator(1, "data", 2).normal(size=8)
    assert (first == generator(1, "data", 2).normal(size=8)).all()
    for other in ((2, "data", 2), (1, "init", 2), (1, "data", 3), (2, "data", 1)):
        assert not (first == generator(*other).normal(size=8)).any()


def test_on_the_cpu_arrays_stay_where_they_are():
    host = np.ones(3)
    assert to_device(host) is host and to_host(host) is host
    assert to_device(host, dtype="float32").dtype == np.float32


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
