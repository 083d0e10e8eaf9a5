"""Prints the scaling tables and resolved runs: `python -m tinymup`, `train.py --explain`."""
import csv
import io
import json
from dataclasses import replace
from itertools import groupby

from ..scaling import PARAMETRIZATIONS, Power
from .config import GROUPS
from .flags import Parser, add_config, configs_of
from .resolved import exponents, resolved
from .terminal import program

TABLE_FORMATS = ("markdown", "json", "csv", "latex")
HEADINGS = {"init": "init std", "mult": "multiplier", "sgd": "SGD lr", "adamw": "AdamW lr",
            "eps": "AdamW ε", "muon": "Muon lr·s"}   # cells of a rule, and their names in print


def symbolic(param):
    """The table of a parametrization as records, one per role. Cells are powers."""
    return [{"role": role} | {name: getattr(rule, name) for name in HEADINGS}
            | ({} if role == "hidden" else {"muon": "AdamW"})
            for role, rule in PARAMETRIZATIONS[param].rules.items()]


def render(records, format="markdown", headings=HEADINGS):
    """Records with equal keys as a table in one of `TABLE_FORMATS`."""
    if format == "json":
        return json.dumps([{key: exponents(value) if isinstance(value, Power) else value
                            for key, value in record.items()} for record in records],
                          ensure_ascii=False, indent=1)
    cells = [[cell_text(value) for value in record.values()] for record in records]
    if format == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([list(records[0]), *cells])
        return text.getvalue().rstrip("\n")
    cells = [[headings.get(key, key) for key in records[0]], *cells]
    if format == "latex":
        return latex(cells)
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|"] + lines[1:])


def cell_text(value):
    """The text of a cell: numbers unrounded as in JSON, None as nothing."""
    if value is None:
        return ""
    return str(value) if isinstance(value, (str, Power)) else json.dumps(value)


def latex(cells):
    """Rows of text as a LaTeX tabular, the first as its head."""
    head, *body = (" & ".join(row) + r" \\" for row in cells)
    text = "\n".join([head + r" \hline", *body])
    for plain, tex in {"_": r"\_", r"√fan\_out": r"$\sqrt{\mathrm{fan\_out}}$",
                       r"√fan\_in": r"$\sqrt{\mathrm{fan\_in}}$",
                       "ε": r"$\varepsilon$", "·": r"$\cdot$"}.items():
        text = text.replace(plain, tex)
    return "\n".join([r"\begin{tabular}{" + "l" * len(cells[0]) + "}", r"\hline", text, r"\hline",
                      r"\end{tabular}"])


def explain(configs, format="markdown"):
    """The resolved runs as text. Of runs that differ only in seed or lr, it shows the first."""
    shown = {}
    for config in configs:
        shown.setdefault(replace(config, lr=1.0, seed=0), config)
    runs = [resolved(config) for config in shown.values()]
    if format == "json":
        return render(runs, format)
    if format == "csv":
        return render([{"run": i, "param": run["config"]["param"]} | row
                       for i, run in enumerate(runs, 1) for row in run["parameters"]], format)
    if format == "latex":
        return "\n".join(render(columns(run["parameters"]), format, {}) for run in runs)
    return "\n".join(f"\n{title(run)}\n\n{render(columns(run['parameters']), format, {})}\n\n"
                     + "\n".join(others(run)) for run in runs)


def columns(rows):
    """The rows as a reader needs them: without columns that are empty or repeat another."""
    dropped = {"sizes", "exponents"}
    dropped |= {key for key in rows[0] if all(row[key] is None for row in rows)}
    if all({row["mult_dx"], row["mult_dw"]} <= {None, row["mult_y"]} for row in rows):
        dropped |= {"mult_dx", "mult_dw"}
    return [{key: x for key, x in row.items() if key not in dropped} for row in rows]


def title(run):
    """The heading of a resolved run."""
    c = run["config"]
    return f"{c['param']}, {c['optimizer']}, width {c['width']}, depth {c['depth']}: lr {c['lr']}"


def others(run):
    """The numbers of a resolved run that belong to no single parameter, a line for each kind."""
    def line(name, numbers):
        return f"{name}: " + ", ".join(f"{key} {cell_text(value)}"
                                       for key, value in numbers.items() if value is not None)
    scales = run["scales"]
    yield line("architecture", run["architecture"])
    yield line("scales", {key: x for key, x in scales.items() if isinstance(x, float)})
    for branch, group in groupby(enumerate(scales["branches"]), lambda pair: pair[1]):
        numbers = [i for i, _ in group]
        yield line("branch " + " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1])))),
                   branch)
    yield line("readout", scales["readout"])
    unused = {"sgd": ["betas"], "adamw": ["momentum", "nesterov", "momentum_form"]}.get(
        run["config"]["optimizer"], [])
    yield line("optimizer", {k: x for k, x in run["optimizer"].items() if k not in unused})
    factors = [cell_text(factor) for factor in run["schedule"]]
    yield (f"schedule, {len(factors)} steps: " + ", ".join(
        factors if len(factors) <= 8 else [*factors[:4], "…", *factors[-3:]]))


EXAMPLES = """Prints the scaling tables or, with any option of a run, all numbers that it uses:

  python -m tinymup                 the tables of all parametrizations
  python -m tinymup --param mup     one of them
  python -m tinymup --param mup --width 1024 --optimizer muon
                                    the numbers of each parameter, like train.py --explain
  python -m tinymup --param mup --format latex

json gives a list of all records or runs; csv gives one table, a line per role or parameter."""


def main(arguments=None):
    """Prints the symbolic tables or, with any other option than --param, the numbers of runs."""
    parser = Parser("python -m tinymup", "python -m tinymup [--param NAME ...] [option ...]",
                    EXAMPLES)
    parser.add_argument("--format", choices=TABLE_FORMATS, default="markdown",
                        help="format of the tables")
    add_config(parser, *GROUPS[:-1])
    with program(parser.prog, "interrupted"):
        flags = vars(parser.parse_args(arguments))
        format, params = flags.pop("format"), flags["param"]
        runs = configs_of(flags)
        if any(value is not None for name, value in flags.items() if name != "param"):
            return print(explain(runs, format))
        chosen = [config.param for config in runs] if params else PARAMETRIZATIONS
        if format in ("json", "csv"):
            return print(render([{"param": param} | record for param in chosen
                                 for record in symbolic(param)], format))
        for param in chosen:
            if format == "markdown":
                print(f"\n{PARAMETRIZATIONS[param].title}\n")
            print(render(symbolic(param), format))
