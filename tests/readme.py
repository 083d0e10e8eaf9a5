"""Rewrites the generated parts of README.md: `python tests/readme.py`.

They stand between <!-- name --> and <!-- /name -->: the tables, an example, and the files of core
and laboratory, with their line counts and the first sentence of their docstrings. test_readme.py
fails where the README differs.
"""
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tinymup.lab.config import Config, build, complete  # noqa: E402
from tinymup.lab.tables import render, symbolic  # noqa: E402
from tinymup.scaling import PARAMETRIZATIONS, ROLES  # noqa: E402

CORE = ["backend", "scaling", "resolve", "ops", "layers", "mlp", "transformer", "orthogonalize",
        "optim", "network", "unit_scaling", "number_formats"]
APART = ["unit_scaling", "number_formats"]      # read on another day
LAB = ["config", "flags", "data", "run", "checkpoint", "worker", "sweep", "cluster", "results",
       "terminal", "plan", "optimum", "plot", "coord_check", "tables", "resolved", "dump",
       "vectors"]


def tables():
    """The roles, and the symbolic tables. Tables 3 and 9 are forms of Table 8 and are left out."""
    roles = "\n".join(["| role | what it is |", "|---|---|"]
                      + [f"| {role} | {what} |" for role, what in ROLES.items()])
    return "\n\n".join([roles] + [f"{table.title} (`--param {param}`)\n\n{render(symbolic(param))}"
                                  for param, table in PARAMETRIZATIONS.items()
                                  if param not in ("mup-table3", "mup-table9")])


def lines(path):
    """The number of lines of a file."""
    return len((ROOT / path).read_text().splitlines())


def files(paths):
    """A table of files: name, lines, the first sentence of the docstring."""
    rows = ["| file | lines | what it is for |", "|---|---|---|"]
    rows += [f"| [{path}]({path}) | {lines(path)} | {purpose(path)} |" for path in paths]
    return "\n".join(rows)


def purpose(path):
    """The first sentence of a file's docstring."""
    first = ast.get_docstring(ast.parse((ROOT / path).read_text())).split("\n\n")[0]
    return re.split(r"(?<=[^l][.?])\s", first.replace("\n", " "))[0].rstrip(".")    # not "et al."


def core():
    """The files of the core in reading order, with totals."""
    paths = {name: f"tinymup/{name}.py" for name in CORE}
    sitting = sum(lines(path) for name, path in paths.items() if name not in APART)
    total = sitting + sum(lines(paths[name]) for name in APART)
    return (f"{sitting:,} lines in one sitting, docstrings included, in this order; with the last "
            f"two files, u-μP's factors and the number formats, {total:,}:\n\n"
            f"{files(paths.values())}")


def lab():
    """The files of the laboratory and the command line, in one paragraph."""
    paths = [f"tinymup/lab/{name}.py" for name in LAB] + ["train.py"]
    listed = ". ".join(f"[{path.rpartition('/')[2]}]({path}) ({lines(path)}): {purpose(path)}"
                       for path in paths)
    return f"{sum(map(lines, paths)):,} lines. {listed}."


def worked():
    """Base width 256, here 1024: the numbers of one parameter per kind, for AdamW and for Muon."""
    def rows(optimizer):
        config = Config(param="mup", optimizer=optimizer, width=1024, base_width=256, lr=2**-7,
                        gains=True, depth=1, base_depth=1)
        return {row.name: row for row in build(complete(config)).rows}
    adamw, muon = rows("adamw"), rows("muon")
    lines = ["| parameter | shape | init std | multiplier | AdamW lr | ε | Muon step / lr |",
             "|---|---|---|---|---|---|---|"]
    for name in "embedding", "block0.query", "block0.up", "block0.down", "final_norm", "output":
        a, m = adamw[name], muon[name]
        step = f"{m.lr * m.shape_factor / 2**-7:g}" if m.optimizer == "muon" else "AdamW"
        lines.append(f"| {name} | {'×'.join(map(str, a.shape))} | {a.std:g} | {a.mult:g} "
                     f"| {a.lr:g} | {a.eps:g} | {step} |")
    return "\n".join(lines)


def rewritten(text):
    """README.md with its generated parts as they are now."""
    for name, part in {"tables": tables, "core": core, "lab": lab, "worked": worked}.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}\n{part()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(rewritten(readme.read_text()))
