"""What CuPy offers: names, arguments, and a check of a call against them. Needs no GPU.

cupy_names.txt holds the list. Where CuPy is installed, this makes it anew:

    python tests/cupy_names.py > tests/cupy_names.txt
"""
import inspect
import pathlib
import re
import types

import numpy as np

# Names that CuPy forwards to the host, that read or write text, or to which NumPy would answer with
# an array of its own.
NOT_FOR_DEVICES = re.compile(
    r"load|save|txt|print|format|_repr|_str|2string|show_config|dump|tofile|tobytes"
    r"|^from(buffer|file|function|iter|string|_dlpack)"
    r"|^(base|data|flat|device|item|tolist|vectorize|poly1d|broadcast|flatiter|ndindex|ufunc"
    r"|[cr]_|[mo]grid)$")
UFUNC_METHODS = {"reduce": "array, axis, dtype, out, keepdims",
                 "accumulate": "array, axis, dtype, out"}


def parameters(function):
    """A CuPy function's parameters in brackets, without defaults; "" where CuPy does not tell."""
    try:
        kinds = {p.name: p.kind for p in inspect.signature(function).parameters.values()}
    except ValueError:
        # a method compiled from Cython tells in the first line of its docstring
        found = re.match(r"\S*?\((.*)\)", (function.__doc__ or "").partition("\n")[0])
        if not found:
            return ""
        words = [word.partition("=")[0].split()[-1] for word in found[1].split(",")]
        return f"({', '.join(words[1:])})"
    others = {name: kind for name, kind in kinds.items() if name != "self"}
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    names = [marks.get(kind, "") + name for name, kind in others.items()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds.values():
        positional = [k for k in others.values() if k < inspect.Parameter.VAR_POSITIONAL]
        if inspect.Parameter.KEYWORD_ONLY in kinds.values():
            names.insert(len(positional), "*")
    return f"({', '.join(names)})"


def lines_of(name, function, cupy):
    """The lines of the list for one name."""
    if not isinstance(function, cupy.ufunc):
        called = callable(function) and not isinstance(function, type)
        return [name + (parameters(function) if called else "")]
    words = [f"x{i + 1}" for i in range(function.nin)] + ["out"] * function.nout
    lines = [f"{name}({', '.join(words)}, *, casting, dtype)"]
    if function._scatter_op is not None:
        lines.append(f"{name}.at(a, indices, b)")
    if name in ("add", "multiply"):
        lines += [f"{name}.{method}({words})" for method, words in UFUNC_METHODS.items()]
    return lines


def list_names(cupy):
    """The lines of cupy_names.txt: the names that this CuPy and this NumPy share."""
    lines = []
    for prefix, ours, theirs in (("", np, cupy), ("linalg.", np.linalg, cupy.linalg),
                                 ("ndarray.", np.ndarray, cupy.ndarray)):
        for name in sorted(set(dir(ours)) & set(dir(theirs))):
            value = getattr(theirs, name)
            hidden = name.startswith("_") or NOT_FOR_DEVICES.search(name)
            if not hidden and not isinstance(value, types.ModuleType):
                lines += lines_of(prefix + name, value, cupy)
    return lines


def parsed(lines):
    """{name: its parameters, or None for what is not called or does not tell}."""
    table = {}
    for line in lines:
        name, bracket, words = line.partition("(")
        words = [word for word in words.rstrip(")").split(", ") if word]
        table[name] = words if bracket else None
    return table


def fault(name, positional=0, keywords=(), table=None):
    """What is wrong with a call of CuPy's `name`, or None if nothing is.

    positional: the number of positional arguments; keywords: the names of the others.
    """
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


LIST = (pathlib.Path(__file__).parent / "cupy_names.txt").read_text().splitlines()
NAMES = parsed(line for line in LIST if not line.startswith("#"))

if __name__ == "__main__":
    import cupy
    print(f"# {cupy.__version__} CuPy, {np.__version__} NumPy: "
          "the names both have and the arguments CuPy takes")
    print("\n".join(list_names(cupy)))
