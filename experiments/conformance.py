"""Which rule published optimizers and unit-scaled operations follow, and what makes them agree.

    python -m venv /tmp/conformance && source /tmp/conformance/bin/activate
    pip install torch --index-url https://download.pytorch.org/whl/cpu
    pip install optax keras pytorch_optimizer heavyball muon-optimizer
    pip install tqdm pandas seaborn pyyaml einops docstring_parser tabulate
    pip install --no-deps mup unit-scaling
    OMP_NUM_THREADS=1 python experiments/conformance.py

The fourth line is what mup and unit-scaling import. Each package trains the same weights with the
same gradients for five steps in float64. A "line" is a change to the package or to its call. A
package's rule is the one of tinymup that is nearest to it with its line, or as shipped if it has
none. Both differences are to this rule. A package that is not installed gets one row that says so.
Writes results/conformance.csv and prints it as Markdown.
"""
import csv
import importlib.metadata
import os
import sys
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from make_vectors import draw  # noqa: E402 (after the path)

from tinymup.optim import Optimizer, Settings  # noqa: E402
from tinymup.orthogonalize import COEFFICIENTS  # noqa: E402
from tinymup.resolve import Hyperparameters, Spec, relative_to, resolve  # noqa: E402
from tinymup.scaling import SHAPE_FACTORS  # noqa: E402

TABLE = HERE / "results/conformance.csv"
STEPS = 5
# Binary fractions: packages that keep them in single precision have the same numbers. A large ε
# shows where it is added. With ε = 1e-8 and these gradients it would change nothing.
LR, DECAY, MOMENTUM, BETAS, EPS = 1/8, 1/16, 15/16, (7/8, 63/64), 2**-7
SIZES = (1, 4, 1/2, 2, 1/4)   # of the gradients of each step; at equal sizes momenta look alike


class Problem(NamedTuple):
    """What a package and tinymup train. Matrices are (fan_in, fan_out)."""
    specs: list
    start: dict              # name → weights
    grads: dict              # name → the gradients of all steps
    depth_ratio: float = 1.0


class Line(NamedTuple):
    """A line of the table. The differences are text: empty if there is nothing to compare."""
    package: str
    version: str
    name: str
    rule: str                # of tinymup, and what the package does otherwise
    shipped: str             # difference of the package as shipped
    line: str                # that makes it agree, or comes nearest to that
    with_line: str           # difference with it
    why: str                 # why no line makes it agree, or a remark


def problem_of(specs, depth_ratio=1.0):
    """Weights and gradients for some specs, from the generator of the test vectors."""
    start, grads = {}, {}
    for number, spec in enumerate(specs, 1):
        z = draw(number, (STEPS + 1, *spec.shape))
        start[spec.name] = z[0] / spec.shape[0]**0.5
        grads[spec.name] = [size * g for size, g in zip(SIZES, z[1:], strict=True)]
    return Problem(specs, start, grads, depth_ratio)


def only(problem, spec):
    """The problem of one parameter."""
    return problem._replace(specs=[spec])


def louder(problem):
    """Gradients 2³⁰ times as large. Muon's step does not depend on their size; guards do."""
    return problem._replace(grads={name: [2**30 * g for g in gs]
                                   for name, gs in problem.grads.items()})


def ours(problem, hyper, settings):
    """tinymup's final weights by name."""
    rows = resolve(problem.specs, hyper, problem.depth_ratio)
    params = {row.name: problem.start[row.name].copy() for row in rows}
    optimizer = Optimizer(rows, params, settings)
    for t in range(STEPS):
        optimizer.step(params, {name: problem.grads[name][t] for name in params}, t)
    return params


def difference(weights, wanted, start):
    """The largest difference of an entry over the largest change of an entry in training, for the
    parameter where this is largest."""
    return max(float(abs(weights[name] - w).max() / abs(w - start[name]).max())
               for name, w in wanted.items())


# Rules: label → (Hyperparameters, Settings)

NUMBERS = dict(lr=LR, weight_decay=DECAY, eps=EPS)
DECAY_FORMS = {"coupled": "decay lr·λ", "independent": "decay λ"}
MOMENTA = {True: "Nesterov", False: "plain"}
MUON_RULES = {
    f"factor {scale}, polynomial {polynomial}, {MOMENTA[nesterov]}, {decay}": (
        Hyperparameters(param="sp", optimizer="muon", muon_scale=scale, decay_form=form, **NUMBERS),
        Settings(momentum=MOMENTUM, nesterov=nesterov, coefficients=polynomial))
    for scale, polynomial, nesterov, (form, decay) in product(
        SHAPE_FACTORS, COEFFICIENTS, MOMENTA, DECAY_FORMS.items())}
PARAMS = ("sp", "ntk", "mup", "mup-table3", "mup-table9", "umup")


def adamw_rules(params=PARAMS):
    """AdamW under some tables."""
    return {f"AdamW, table {param}, {decay}": (
        Hyperparameters(param=param, optimizer="adamw", decay_form=form, **NUMBERS),
        Settings(betas=BETAS))
        for param, (form, decay) in product(params, DECAY_FORMS.items())}


def sgd_rules(params=tuple(param for param in PARAMS if param != "ntk")):
    """SGD with momentum under some tables. NTK's learning rates are SP's."""
    return {f"SGD, table {param}, {MOMENTA[nesterov]}, {decay}": (
        Hyperparameters(param=param, optimizer="sgd", decay_form=form, **NUMBERS),
        Settings(momentum=MOMENTUM, nesterov=nesterov))
        for param, nesterov, (form, decay) in product(params, MOMENTA, DECAY_FORMS.items())}


def nearest(problem, rules, weights):
    """(label, final weights) of the rule whose weights come nearest to those given."""
    finals = {label: ours(problem, *rule) for label, rule in rules.items()}
    return min(finals.items(), key=lambda item: difference(weights, item[1], problem.start))


# Problems

MATRICES = problem_of([Spec(f"{m}x{n}", "hidden", (m, n)) for m, n in ((8, 32), (32, 8), (16, 16))])
VECTOR = problem_of([Spec("vector", "vector", (16,))])     # what Muon leaves to AdamW
VOCAB, DATA = 11, 5


def network_specs(width, ffn):
    """A parameter of each role, named as in PyTorch. Only mup and PyTorch train it."""
    return [Spec("embedding.weight", "embedding", (VOCAB, width)),
            Spec("input.weight", "input", (DATA, width)), Spec("input.bias", "vector", (width,)),
            Spec("norm.weight", "vector", (width,)), Spec("norm.bias", "vector", (width,)),
            Spec("up.weight", "hidden", (width, ffn)), Spec("up.bias", "vector", (ffn,)),
            Spec("down.weight", "hidden", (ffn, width)), Spec("down.bias", "vector", (width,)),
            Spec("readout.weight", "output", (width, VOCAB)),
            Spec("readout.bias", "scalar", (VOCAB,))]


BASE, WIDER, TARGET = (16, 64), (32, 128), (64, 512)   # (width, ffn): they grow by 4 and by 8
NETWORK = problem_of(relative_to(network_specs(*TARGET), network_specs(*BASE)))

UNIT_WIDTH, UNIT_FFN, UNIT_DEPTH = 16, 40, 3


def unit_specs():
    """The parameters of a unit-scaled network with residual blocks."""
    width, ffn = UNIT_WIDTH, UNIT_FFN
    block = {"norm.weight": ("vector", (width,)), "norm.bias": ("vector", (width,)),
             "up.weight": ("hidden", (width, ffn)), "up.bias": ("vector", (ffn,)),
             "down.weight": ("hidden", (ffn, width))}
    return [Spec("embedding.weight", "embedding", (VOCAB, width)),
            Spec("input.weight", "input", (DATA, width)),
            *(Spec(f"blocks.{i}.{name}", role, shape, in_branch=True)
              for i in range(UNIT_DEPTH) for name, (role, shape) in block.items()),
            Spec("readout.weight", "output", (width, VOCAB))]


UNIT = problem_of(unit_specs(), UNIT_DEPTH)


# Lines of the table

def compared(name, note, problem, rules, shipped, line="", repaired=None, why=""):
    """An optimizer. shipped and repaired train a problem and return the weights by name."""
    first = shipped(problem)
    last = repaired(problem) if repaired else first
    label, wanted = nearest(problem, rules, last)
    apart = [difference(weights, wanted, problem.start) for weights in (first, last)]
    return valued(name, f"{label}; {note}" if note else label, apart[0], line,
                  apart[1] if repaired else None, why)


def valued(name, rule, shipped, line="", with_line=None, why=""):
    """Anything with a difference of its own."""
    texts = ["" if x is None else f"{x:.1e}" for x in (shipped, with_line)]
    return Line("", "", name, rule, texts[0], line, texts[1], why)


def unmapped(name, why):
    """What has no counterpart in tinymup."""
    return Line("", "", name, "", "", "", "", "not mapped: " + why)


def packages():
    """name → function that yields its lines"""
    import conformance_mup as tables
    import conformance_packages as muons
    return {"torch": muons.torch_lines, "muon-optimizer": muons.muon_optimizer_lines,
            "pytorch_optimizer": muons.pytorch_optimizer_lines,
            "heavyball": muons.heavyball_lines, "optax": muons.optax_lines,
            "keras": muons.keras_lines, "mup": tables.mup_lines,
            "unit-scaling": tables.unit_lines}


def lines(measures):
    """The table. measures: as of `packages`."""
    for package, measure in measures.items():
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield Line(package, "", "", "", "", "", "", "not installed")
            continue
        for line in measure():
            yield line._replace(package=package, version=version)


def write(table):
    """The table as CSV, with a first line that says how to make it."""
    with TABLE.open("w", newline="") as file:
        file.write(f"# python experiments/conformance.py; float64; {STEPS} steps; lr {LR}, decay "
                   f"{DECAY}, momentum {MOMENTUM}, betas {BETAS}, eps {EPS}; NumPy "
                   f"{np.__version__}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Line._fields)
        writer.writerows(table)


def read():
    """The lines of the CSV."""
    with TABLE.open(newline="") as file:
        next(file)
        return [Line(**row) for row in csv.DictReader(file)]


def markdown(table):
    """The table as Markdown. What is not mapped follows as a list."""
    rows = [Line._fields[:2] + ("what", "rule", "as shipped", "the line", "with it", "why"),
            ["---"] * len(Line._fields), *(line for line in table if line.rule or not line.name)]
    text = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(text + [""] + [f"* {line.package} {line.version}, {line.name}: {line.why}"
                                    for line in table if line.name and not line.rule])


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "torch")
    found = list(lines(packages()))
    write(found)
    print(markdown(found))
