"""The scaling tables: every number of a model or an optimizer that depends on width or depth is a cell of this file.

A training run under an abc-parametrization (Yang & Hu 2021, arXiv:2011.14522) is, for each parameter tensor w,

    W = A w        w_0 ~ N(0, B²)        w_{t+1} = w_t − C Φ(g_0 … g_t),   g = ∂loss/∂w

and a parametrization says how multiplier A, initial standard deviation B and learning rate C change with the sizes of w.
Here A, B and C are *powers* of fan_in, fan_out and depth, held as their exponents. So the same object is evaluated in
training, printed in the README, exported, and tested as algebra.

Sizes are ratios to a base model: at the base width all parametrizations are the same program, with the standard values
of `BASE_INIT`. u-μP knows no base model: its base sizes are 1, so that its ratios are the sizes themselves.

A weight matrix has shape (fan_in, fan_out) and acts as x @ w. PyTorch stores the transpose.
"""
import csv
import io
import json
from fractions import Fraction
from math import prod, sqrt
from typing import NamedTuple


class Size(NamedTuple):
    """What a cell may depend on, each as a ratio to the base model. A dimension that is no width (vocabulary, context) has ratio 1."""

    fan_in: float = 1.0
    fan_out: float = 1.0
    depth: float = 1.0


class Power(NamedTuple):
    """fan_in^i · fan_out^o · depth^d, held as its three exponents."""

    fan_in: float = 0.0
    fan_out: float = 0.0
    depth: float = 0.0

    def at(self, size):
        """The number that this power is at a `Size`."""
        return prod(s**e for s, e in zip(size, self))

    def times(self, other):
        """The product of two powers: exponents add."""
        return Power(*(a + b for a, b in zip(self, other)))

    def to_the(self, exponent):
        """This power raised to an exponent."""
        return Power(*(a * exponent for a in self))

    def __str__(self):
        above = [_root(n, e) for n, e in zip(self._fields, self) if e > 0]
        below = [_root(n, -e) for n, e in zip(self._fields, self) if e < 0]
        return "·".join(above or ["1"]) + "".join("/" + b for b in below)


def _root(name, exponent):
    """fan_in^1 as fan_in, fan_in^½ as √fan_in, any other exponent as fan_in^p/q."""
    return {1: name, 0.5: "√" + name}.get(exponent, f"{name}^{Fraction(exponent).limit_denominator(16)}")


class Rule(NamedTuple):
    """One row of a parametrization: how the numbers of a parameter change with its sizes."""

    init: Power    # B: standard deviation of the initial values (of a norm gain: its mean)
    mult: Power    # A: multiplier wherever the parameter is used
    sgd: Power     # C for SGD, with or without momentum
    adamw: Power   # C for AdamW
    eps: Power     # Adam's ε, added to √v: it has to shrink as the gradients do

    def lr(self, optimizer):
        """C for an optimizer: "sgd", "adamw" or "muon".

        Muon's step is an orthogonal matrix O, times a shape factor s (`SHAPE_FACTORS`) and C. The layer's effective weight
        then moves by A·C·s in spectral norm, and the spectral condition (Yang, Simon & Bernstein 2023, arXiv:2310.17813)
        wants √(fan_out/fan_in). The cell is C·s; `resolve` divides by s, so that no width is counted twice.
        """
        if optimizer == "muon":
            return Power(fan_in=-1/2, fan_out=1/2).times(self.mult.to_the(-1))
        return getattr(self, optimizer)


def shifted(rule, theta):
    """The same training run, written differently: A·θ, B/θ, and C such that A·w moves as before (abc-symmetry).

    The gradient of w grows by θ with A while w shrinks by θ: SGD needs C/θ², Adam, whose step does not feel the size of the
    gradient, C/θ, and its ε grows with the gradient to ε·θ. Muon's column follows from A. Weight decay that is independent
    of the learning rate does not change. (Yang et al. 2022, arXiv:2203.03466, Lemma J.1; ε and decay: derived, tested.)
    """
    back = theta.to_the(-1)
    return Rule(rule.init.times(back), rule.mult.times(theta), rule.sgd.times(back.to_the(2)),
                rule.adamw.times(back), rule.eps.times(theta))


class Parametrization(NamedTuple):
    """A rule per role, and the scales of what is not a parameter."""

    title: str
    rules: dict              # role → Rule
    attention: Power         # of the attention logits q·k; its fan_in is the head dimension
    tied_readout: Power      # multiplier of a readout that shares the embedding's matrix; None: cannot be written in this form
    base_free: bool = False  # u-μP: all base sizes are 1


ROLES = {
    "embedding": "lookup table (vocabulary, width): one row is read per token",
    "input": "dense first layer: fan_in is data, fan_out a width",
    "hidden": "matrix from width to width",
    "output": "readout: fan_in is a width, fan_out is data",
    "vector": "biases and norm gains of a wide layer: fan_in is 1, fan_out their length",
    "scalar": "no dimension is a width",
    "tied": "embedding and readout in one matrix (vocabulary, width): fan_out is the width",
}

ONE = Power()
OUT, ROOT_OUT, PER_OUT, PER_ROOT_OUT = Power(fan_out=1), Power(fan_out=1/2), Power(fan_out=-1), Power(fan_out=-1/2)
IN, ROOT_IN, PER_IN, PER_ROOT_IN = Power(fan_in=1), Power(fan_in=1/2), Power(fan_in=-1), Power(fan_in=-1/2)
OUT_PER_IN = Power(fan_in=-1, fan_out=1)

# Initial standard deviations at the base width, where sizes are absolute: unit variance in, unit variance out (LeCun).
# A tied matrix starts as a readout; its lookup is multiplied up to unit variance, as in Vaswani et al. 2017, §3.4.
BASE_INIT = {"embedding": ONE, "input": PER_ROOT_IN, "hidden": PER_ROOT_IN, "output": PER_ROOT_IN,
             "vector": ONE, "scalar": ONE, "tied": PER_ROOT_OUT}

# Standard parametrization: what one writes without thinking of width (arXiv:2203.03466, Table 3, in brackets).
SP = {
    #                  init          mult          sgd         adamw         eps
    "embedding": Rule(ONE,          ONE,          ONE,        ONE,          ONE),
    "input":     Rule(ONE,          ONE,          ONE,        ONE,          ONE),
    "hidden":    Rule(PER_ROOT_IN,  ONE,          ONE,        ONE,          ONE),
    "output":    Rule(PER_ROOT_IN,  ONE,          ONE,        ONE,          ONE),
    "vector":    Rule(ONE,          ONE,          ONE,        ONE,          ONE),
    "scalar":    Rule(ONE,          ONE,          ONE,        ONE,          ONE),
    "tied":      Rule(PER_ROOT_OUT, ROOT_OUT,     ONE,        ONE,          ONE),
}

# Neural tangent parametrization (arXiv:2011.14522). SGD: lr 1. Adam and ε: derived for the same kernel limit, in which
# the function moves by Θ(1) and the features by Θ(1/√width), that is, not at all in a wide network.
NTK = {
    "embedding": Rule(ONE,          ONE,          ONE,        PER_ROOT_OUT, PER_ROOT_OUT),
    "input":     Rule(ONE,          ONE,          ONE,        PER_ROOT_OUT, PER_ROOT_OUT),
    "hidden":    Rule(ONE,          PER_ROOT_IN,  ONE,        PER_IN,       PER_IN),
    "output":    Rule(ONE,          PER_ROOT_IN,  ONE,        PER_ROOT_IN,  PER_ROOT_IN),
    "vector":    Rule(ONE,          ONE,          ONE,        PER_ROOT_OUT, PER_ROOT_OUT),
    "scalar":    Rule(ONE,          ONE,          ONE,        ONE,          ONE),
    "tied":      Rule(ONE,          ONE,          ONE,        PER_ROOT_OUT, PER_ROOT_OUT),
}

# Maximal update parametrization, arXiv:2203.03466, Table 3: no multipliers.
# SGD's hidden cell is 1 in the paper, where all widths grow together; fan_out/fan_in is its form for unequal ratios (`mup`).
# ε is derived: it follows the size of the gradients, which shrink with width except at a Table 3 readout.
MUP_TABLE3 = {
    "embedding": Rule(ONE,          ONE,          OUT,        ONE,          PER_OUT),
    "input":     Rule(ONE,          ONE,          OUT,        ONE,          PER_OUT),
    "hidden":    Rule(PER_ROOT_IN,  ONE,          OUT_PER_IN, PER_IN,       PER_IN),
    "output":    Rule(PER_IN,       ONE,          PER_IN,     PER_IN,       ONE),
    "vector":    Rule(ONE,          ONE,          OUT,        ONE,          PER_OUT),
    "scalar":    Rule(ONE,          ONE,          ONE,        ONE,          ONE),
}

# Table 8, what the `mup` package does: the readout of Table 3 shifted by θ = 1/fan_in. Embedding and readout may be tied.
MUP_TABLE8 = {
    "embedding": Rule(ONE,          ONE,          OUT,        ONE,          PER_OUT),
    "input":     Rule(ONE,          ONE,          OUT,        ONE,          PER_OUT),
    "hidden":    Rule(PER_ROOT_IN,  ONE,          OUT_PER_IN, PER_IN,       PER_IN),
    "output":    Rule(ONE,          PER_IN,       IN,         ONE,          PER_IN),
    "vector":    Rule(ONE,          ONE,          OUT,        ONE,          PER_OUT),
    "scalar":    Rule(ONE,          ONE,          ONE,        ONE,          ONE),
    "tied":      Rule(ONE,          ONE,          OUT,        ONE,          PER_OUT),
}

# Table 9: Table 3 shifted by θ = 1/√fan_in (readout) and √fan_out (embedding, input, vectors). SGD has one lr for all.
MUP_TABLE9 = {
    "embedding": Rule(PER_ROOT_OUT, ROOT_OUT,     ONE,        PER_ROOT_OUT, PER_ROOT_OUT),
    "input":     Rule(PER_ROOT_OUT, ROOT_OUT,     ONE,        PER_ROOT_OUT, PER_ROOT_OUT),
    "hidden":    Rule(PER_ROOT_IN,  ONE,          OUT_PER_IN, PER_IN,       PER_IN),
    "output":    Rule(PER_ROOT_IN,  PER_ROOT_IN,  ONE,        PER_ROOT_IN,  PER_ROOT_IN),
    "vector":    Rule(PER_ROOT_OUT, ROOT_OUT,     ONE,        PER_ROOT_OUT, PER_ROOT_OUT),
    "scalar":    Rule(ONE,          ONE,          ONE,        ONE,          ONE),
    "tied":      Rule(PER_ROOT_OUT, ROOT_OUT,     ONE,        PER_ROOT_OUT, PER_ROOT_OUT),
}

# Unit-scaled μP (Blake et al. 2024, arXiv:2407.17465, Table 2): Table 8 shifted by θ = 1/√fan_in where it starts at 1/√fan_in, and a new
# learning rate for the embedding. Base sizes are 1, so sizes are absolute. Gradients have unit scale (`unit_scaling.py`): ε is constant,
# and SGD gets Adam's column (graphcore-research/unit-scaling, `optim.py`; biases follow Aleph-Alpha/scaling, which adds them after A).
U_MUP = {
    "embedding": Rule(ONE,          ONE,          PER_ROOT_OUT, PER_ROOT_OUT, ONE),
    "input":     Rule(ONE,          PER_ROOT_IN,  ONE,          ONE,          ONE),
    "hidden":    Rule(ONE,          PER_ROOT_IN,  PER_ROOT_IN,  PER_ROOT_IN,  ONE),
    "output":    Rule(ONE,          PER_IN,       ONE,          ONE,          ONE),
    "vector":    Rule(ONE,          ONE,          ONE,          ONE,          ONE),
    "scalar":    Rule(ONE,          ONE,          ONE,          ONE,          ONE),
}

# q·k sums head_dim terms. They are independent at initialisation (1/√d), but training correlates them (1/d, μP).
PARAMETRIZATIONS = {
    "sp": Parametrization("SP, standard parametrization", SP, PER_ROOT_IN, ONE),
    "ntk": Parametrization("NTK, neural tangent parametrization", NTK, PER_ROOT_IN, PER_ROOT_OUT),
    "mup": Parametrization("μP, maximal update parametrization (Table 8)", MUP_TABLE8, PER_IN, PER_OUT),
    "mup-table3": Parametrization("μP as Table 3", MUP_TABLE3, PER_IN, None),
    "mup-table9": Parametrization("μP as Table 9", MUP_TABLE9, PER_IN, PER_ROOT_OUT),
    "umup": Parametrization("u-μP, unit-scaled maximal update parametrization (absolute sizes)", U_MUP, PER_IN, None, base_free=True),
}


class DepthRule(NamedTuple):
    """What the parameters inside a residual branch get on top of their row, and the weight of the branch."""

    branch: Power
    sgd: Power
    adamw: Power
    muon: Power
    eps: Power


def depth_power(alpha):
    """Branch weight L^-α (L: layers over base layers), with the lr and ε that keep each branch's update in step.

    Adam and Muon steps do not feel the branch weight: lr · L^(α−1). A gradient carries it once: SGD lr · L^(2α−1), ε · L^-α.
    (Yang et al. 2023, arXiv:2310.02244, α = ½; Dey et al. 2025, arXiv:2505.01618, Table 1, α = ½ and 1; SGD, Muon: derived.)
    """
    return DepthRule(Power(depth=-alpha), Power(depth=2*alpha - 1), Power(depth=alpha - 1), Power(depth=alpha - 1), Power(depth=-alpha))


PER_ROOT_DEPTH = Power(depth=-1/2)
DEPTH_RULES = {"none": DepthRule(ONE, ONE, ONE, ONE, ONE), "depth-mup": depth_power(1/2), "completep": depth_power(1)}
# u-μP's branch weights follow a recursion (`unit_scaling.residual`), its gradients do not carry them.
U_MUP_DEPTH = DepthRule(ONE, PER_ROOT_DEPTH, PER_ROOT_DEPTH, PER_ROOT_DEPTH, ONE)

# Muon's factor on the orthogonal step, of (fan_in, fan_out). Named after who uses it; "spectral" gives ‖Δw‖₂ = lr·√(fan_out/fan_in).
SHAPE_FACTORS = {
    "spectral": lambda fan_in, fan_out: sqrt(fan_out / fan_in),
    "keller": lambda fan_in, fan_out: sqrt(max(1, fan_out / fan_in)),
    "moonlight": lambda fan_in, fan_out: 0.2 * sqrt(max(fan_in, fan_out)),
    "none": lambda fan_in, fan_out: 1.0,
}


class Spec(NamedTuple):
    """A parameter as a model declares it: name, role, its shape here and in the base model, and where its values start."""

    name: str
    role: str
    shape: tuple
    base_shape: tuple
    mean: float = 0.0        # 1 for a norm gain
    std: float = 1.0         # in units of BASE_INIT; 0 for what starts constant
    in_branch: bool = False  # inside a residual branch, where depth counts
    heads: tuple = None      # (heads, head_dim, base head_dim) of a matrix that Muon orthogonalises head by head


class Hyperparameters(NamedTuple):
    """What the user chooses, at the base width; the table turns it into numbers for each parameter."""

    lr: float = 2**-7
    adam_lr: float = None          # of the parameters that Muon leaves to AdamW; None: lr
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_form: str = "independent"
    init_scale: float = 1.0
    embed_mult: float = 1.0
    output_mult: float = 1.0
    muon_scale: str = "spectral"


class Row(NamedTuple):
    """A parameter's numbers, resolved: what it gets in this run."""

    name: str
    role: str
    shape: tuple
    optimizer: str
    mean: float
    std: float
    mult: float
    lr: float                      # Muon: the factor on s·O
    shape_factor: float            # Muon's s; 1 for the others
    heads: int                     # Muon orthogonalises this many blocks of columns apart
    eps: float
    weight_decay: float            # λ
    shrink: float                  # what decay takes off w per step at the schedule's peak: λ, or lr·λ where coupled


def fans(shape):
    """(fan_in, fan_out) of a matrix; a vector is a matrix with fan_in 1."""
    return shape if len(shape) == 2 else (1, *shape)


def size_of(spec, depth_ratio=1.0, base_free=False):
    """The `Size` of a parameter: its dimensions over those of the base model."""
    (fan_in, fan_out), (base_in, base_out) = fans(spec.shape), (1, 1) if base_free else fans(spec.base_shape)
    return Size(fan_in / base_in, fan_out / base_out, depth_ratio if spec.in_branch else 1.0)


def muon_lr(spec, rule, muon_scale, base_free):
    """(C, s) of a matrix for Muon, per unit of lr: C·s goes like the table's cell, and is s at the base.

    Head by head, the matrix is the block of columns that belongs to one head.
    """
    if len(spec.shape) != 2:
        raise ValueError(f"parameter {spec.name} has shape {spec.shape}, and Muon takes matrices: make it (fan_in, fan_out), or give it another role")
    (fan_in, fan_out), (base_in, base_out) = spec.shape, spec.base_shape
    if spec.heads:
        _, fan_out, base_out = spec.heads
    if base_free:
        base_in, base_out = 1, 1
    s, base_s = SHAPE_FACTORS[muon_scale](fan_in, fan_out), SHAPE_FACTORS[muon_scale](base_in, base_out)
    return rule.lr("muon").at(Size(fan_in / base_in, fan_out / base_out)) * base_s / s, s


def resolve(specs, param="mup", optimizer="adamw", hyper=Hyperparameters(), depth_ratio=1.0, depth_rule="none"):
    """The table, applied: one `Row` per parameter.

    Weight decay: w ← (1 − s_t·λ) w (independent, s_t the schedule's factor, λ the same for all widths), or
    w ← (1 − s_t·lr·λ) w (coupled, as in PyTorch's AdamW), where λ grows as lr shrinks, so that lr·λ is the same for all widths (and depths:
    CompleteP's Table 1 leaves λ alone where a depth rule lowers the lr).

    Errors: ValueError for an unknown role, or one that the parametrization has no rule for, naming the parameter.
    """
    table = PARAMETRIZATIONS[param]
    depth = U_MUP_DEPTH if table.base_free else DEPTH_RULES[depth_rule]
    for spec in specs:
        if spec.role not in table.rules:
            raise ValueError(f"parameter {spec.name} has role {spec.role!r}, and {param} has rules for {', '.join(table.rules)} only: "
                             + ("tie embeddings under sp, ntk, mup or mup-table9" if spec.role == "tied" else "give it one of these"))
    return [row_of(spec, table, depth, depth_ratio, optimizer, hyper) for spec in specs]


def row_of(spec, table, depth, depth_ratio, optimizer, hyper):
    """The `Row` of one parameter."""
    rule, size = table.rules[spec.role], size_of(spec, depth_ratio, table.base_free)
    base_init = BASE_INIT[spec.role].at(Size(*((1, 1) if table.base_free else fans(spec.base_shape))))
    user_mult = {"embedding": hyper.embed_mult, "tied": hyper.embed_mult / base_init, "output": hyper.output_mult}

    updated_by = optimizer_of(spec.role, optimizer)
    base_lr = hyper.lr if updated_by == optimizer or hyper.adam_lr is None else hyper.adam_lr
    if updated_by == "muon":
        per_lr, shape_factor = muon_lr(spec, rule, hyper.muon_scale, table.base_free)
    else:
        per_lr, shape_factor = rule.lr(updated_by).at(size), 1.0
    lr = base_lr * per_lr * getattr(depth, updated_by).at(size)
    coupled = hyper.decay_form == "coupled"
    weight_decay = hyper.weight_decay * (base_lr / lr if coupled else 1.0)
    return Row(
        spec.name, spec.role, spec.shape, updated_by,
        mean=rule.init.at(size) * spec.mean,
        std=rule.init.at(size) * spec.std * base_init * hyper.init_scale,
        mult=rule.mult.at(size) * user_mult.get(spec.role, 1.0),
        lr=lr, shape_factor=shape_factor, heads=spec.heads[0] if spec.heads else 1,
        eps=hyper.eps * rule.eps.at(size) * depth.eps.at(size),
        weight_decay=weight_decay, shrink=weight_decay * (lr if coupled else 1.0))


def optimizer_of(role, optimizer):
    """Who updates a parameter: Muon takes the hidden matrices only and leaves all others to AdamW."""
    return "adamw" if optimizer == "muon" and role != "hidden" else optimizer


def attention_scale(param, head_dim, base_head_dim):
    """The factor on q·k: 1/√d under SP and NTK; √d₀/d under μP, equal to it at the base; 1/d under u-μP."""
    table = PARAMETRIZATIONS[param]
    base = 1 if table.base_free else base_head_dim
    return table.attention.at(Size(fan_in=head_dim / base)) * PER_ROOT_IN.at(Size(fan_in=base))


def tied_readout_mult(param, spec):
    """The multiplier of the readout where it reads the embedding's matrix, which `spec` describes."""
    table = PARAMETRIZATIONS[param]
    return table.tied_readout.at(size_of(spec, base_free=table.base_free))


def branch_weight(depth_rule, depth_ratio):
    """What a residual branch is multiplied by before it is added to the stream."""
    return DEPTH_RULES[depth_rule].branch.at(Size(depth=depth_ratio))


# ── The tables, printed ──────────────────────────────────────────────────────────────────────────────────────────────

def symbolic(param):
    """The parametrization as a list of records, one per role, cells written out as powers."""
    records = []
    for role, rule in PARAMETRIZATIONS[param].rules.items():
        records.append({"role": role, "init std": rule.init, "multiplier": rule.mult, "SGD lr": rule.sgd, "AdamW lr": rule.adamw,
                        "AdamW ε": rule.eps, "Muon lr·s": rule.lr("muon") if role == "hidden" else "AdamW"})
    return [{key: str(cell) for key, cell in record.items()} for record in records]


def resolved(rows):
    """Resolved rows as a list of records, with the columns that a reader compares between two runs."""
    return [{"parameter": r.name, "role": r.role, "shape": "×".join(map(str, r.shape)), "init mean": r.mean, "init std": r.std,
             "multiplier": r.mult, "optimizer": r.optimizer, "lr": r.lr, "shape factor": r.shape_factor, "ε": r.eps,
             "weight decay": r.weight_decay, "shrink/step": r.shrink} for r in rows]


def render(records, format="markdown"):
    """Records with equal keys as a "markdown", "latex", "csv" or "json" table."""
    if format == "json":
        return json.dumps(records, ensure_ascii=False, indent=1)
    cells = [list(records[0])] + [[f"{c:.4g}" if isinstance(c, float) else str(c) for c in r.values()] for r in records]
    if format == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(cells)
        return text.getvalue().rstrip()
    if format == "latex":
        escape = {"√fan_out": r"$\sqrt{\mathrm{fan\_out}}$", "√fan_in": r"$\sqrt{\mathrm{fan\_in}}$", "ε": r"$\varepsilon$",
                  "×": r"$\times$", "·": r"$\cdot$"}
        lines = [r"\begin{tabular}{" + "l" * len(cells[0]) + "}", r"\hline"]
        for i, row in enumerate(cells):
            lines.append(" & ".join(c.replace("_", r"\_") for c in row) + r" \\" + (r" \hline" if i == 0 else ""))
        for plain, tex in escape.items():
            lines = [line.replace(plain.replace("_", r"\_"), tex) for line in lines]
        return "\n".join(lines + [r"\hline", r"\end{tabular}"])
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|"] + lines[1:])


if __name__ == "__main__":
    # As a program this file stands above the models whose parameters it resolves.
    import argparse

    from tinymup import network

    parser = argparse.ArgumentParser(prog="python -m tinymup.scaling", description="Prints the scaling tables; with --width, "
                                     "what each parameter of a Transformer gets.")
    parser.add_argument("--param", nargs="*", choices=PARAMETRIZATIONS, default=list(PARAMETRIZATIONS))
    parser.add_argument("--optimizer", choices=network.OPTIMIZERS, default="adamw")
    parser.add_argument("--width", type=int)
    parser.add_argument("--base-width", type=int, default=network.Config().base_width)
    parser.add_argument("--format", choices=["markdown", "json", "csv", "latex"], default="markdown")
    flags = parser.parse_args()
    for param in flags.param:
        if flags.format == "markdown":
            print(f"\n{PARAMETRIZATIONS[param].title}\n")
        try:
            config = flags.width and network.complete(network.Config(
                param=param, optimizer=flags.optimizer, width=flags.width, base_width=flags.base_width))
            records = resolved(network.build(config).rows) if config else symbolic(param)
        except ValueError as error:
            parser.exit(2, f"{error}\n")
        print(render(records, flags.format))
