"""How the repository is built: what imports what, how large files are, what comments refer to."""
import ast
import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENTRIES = ("__main__", "vectors")   # programs for `python -m`: they call a main of the lab
CORE = [f for f in sorted(ROOT.glob("tinymup/*.py")) if f.stem not in ENTRIES]
LAB = sorted(ROOT.glob("tinymup/lab/*.py"))
PORTS = [f for f in LAB if f.stem in ("resolved", "vectors")]   # the numbers that ports compare
PACKAGE = [*sorted(ROOT.rglob("tinymup/**/*.py")), ROOT / "train.py"]
# The order that the README draws: a file of the core imports files of the lines above its own only.
RANKS = re.search(r"```\n(backend .*?)```", (ROOT / "README.md").read_text(), re.S)[1]
RANK = {name: i for i, line in enumerate(RANKS.split("\n")) for name in line.split()}


def repository():
    """Every Python file of the repository, also those that are not committed yet."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard",
               "*.py"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        files = [ROOT / name for name in names.splitlines()]
    except (OSError, subprocess.CalledProcessError):   # a copy without git
        files = [*ROOT.glob("*.py"), *(f for folder in ("tinymup", "tests", "experiments")
                                       for f in (ROOT / folder).rglob("*.py"))]
    return sorted(f for f in set(files) if f.exists())


def name_of(file):
    """The module's name below the package, as lab.run; of train.py, train."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "tinymup" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(source, name, is_package=False):
    """The modules of tinymup that a source imports, by their names below the package."""
    found = set()
    here = ("tinymup", *name.split("."))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = here[:len(here) - node.level + is_package] if node.level else ()
            module = ".".join([*parent, *filter(None, [node.module])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    modules = {name_of(file) for file in PACKAGE}
    return {m.removeprefix("tinymup.") for m in found
            if m.startswith("tinymup.") and m.removeprefix("tinymup.") in modules}


GRAPH = {name_of(file): imports(file.read_text(), name_of(file), file.stem == "__init__")
         for file in PACKAGE}


def functions(file):
    """The definitions of functions in a file."""
    return [node for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def lines_of(files):
    """The number of lines in all files together."""
    return sum(len(file.read_text().splitlines()) for file in files)


# Imports

def test_all_ways_to_import_a_module_are_found():
    source = """import tinymup.ops, numpy
from . import layers
from .backend import xp
from .lab import run as r
def f():
    from tinymup.lab.config import Config"""
    assert imports(source, "mlp") >= {"ops", "layers", "backend", "lab.run", "lab.config"}
    assert imports("from ..network import build\nfrom . import data", "lab.run") == {
        "network", "lab.data", "lab"}


def test_the_core_imports_nothing_of_the_lab():
    assert not [f"{file.stem} imports {name}" for file in CORE for name in GRAPH[name_of(file)]
                if name.split(".")[0] == "lab"]


def test_no_module_imports_itself_through_others():
    def closure(name):
        todo, seen = list(GRAPH[name]), set()
        while todo:
            other = todo.pop()
            if other not in seen:
                seen.add(other)
                todo += GRAPH[other]
        return seen
    assert not [name for name in GRAPH if name in closure(name)]
    assert {"backend", "config"} <= {n.split(".")[-1] for n in closure("train")}


def test_each_file_of_the_core_imports_files_above_it_only():
    assert set(RANK) == {file.stem for file in CORE} - {"__init__"}
    assert not [f"{name} imports {other}" for name in RANK for other in GRAPH[name]
                if RANK[other] >= RANK[name]]


# Sizes

def test_no_line_is_longer_than_100_characters():
    assert not [f"{file.relative_to(ROOT)}:{i}" for file in repository()
                for i, line in enumerate(file.read_text().splitlines(), 1) if len(line) > 100]


def test_no_function_of_the_package_has_more_than_50_lines_and_no_file_more_than_350():
    assert not [f"{file.name}: {f.name}" for file in PACKAGE for f in functions(file)
                if f.end_lineno - f.lineno + 1 > 50]
    assert not [file.name for file in PACKAGE if lines_of([file]) > 350]


@pytest.mark.parametrize("files, most", [
    (CORE, 1700),
    ([f for f in CORE if f.stem not in ("unit_scaling", "number_formats")], 1300),
    ([f for f in LAB if f not in PORTS], 2400),   # 1,500 is the aim
    (PORTS, 250),
    ([ROOT / "train.py"], 200),
], ids=["core", "core without u-μP and number formats", "lab", "for ports", "train.py"])
def test_the_parts_stay_small(files, most):
    assert lines_of(files) <= most


def test_no_function_of_the_core_has_more_than_six_positional_parameters():
    def positional(f):
        names = [a.arg for a in f.args.posonlyargs + f.args.args]
        return len(names) - (names[:1] in (["self"], ["cls"]))
    assert not [f"{file.stem}.{f.name}" for file in CORE for f in functions(file)
                if positional(f) > 6]


# Comments

def prose(source):
    """The comments and docstrings of a source."""
    comments = [token.string for token in tokenize.generate_tokens(io.StringIO(source).readline)
                if token.type == tokenize.COMMENT]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) for node in ast.walk(ast.parse(source))
                  if isinstance(node, documented)]
    return comments + [text for text in docstrings if text]


NOT_OURS = re.compile(r"\b(DESIGN|FORMULAS|STYLE|PEERS)\b|\.\./shared|[─═━]{2}")


def test_no_comment_refers_to_notes_outside_the_repository_or_draws_a_ruler():
    found = [f"{file.relative_to(ROOT)}: {text.strip()[:60]}" for file in repository()
             for text in prose(file.read_text()) if NOT_OURS.search(text)]
    assert not found
    source = '"""See DESIGN."""\nx = 1   # FORMULAS §2\n# ── Title ──\ny = "STYLE"\n'
    assert len([text for text in prose(source) if NOT_OURS.search(text)]) == 3
