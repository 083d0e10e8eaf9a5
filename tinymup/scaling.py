"""The scaling tables: how initial values, multipliers and learning rates follow width and depth.

A cell is a power of fan_in, fan_out and depth, stored as exponents. Training evaluates it, the
README prints it, and the tests check it as algebra. A weight matrix has shape (fan_in, fan_out) and
acts as x @ w; PyTorch stores the transpose. Read next: resolve.py, the table applied to a model."""
from fractions import Fraction
from math import prod, sqrt
from typing import NamedTuple


class Size(NamedTuple):
    """The sizes of a parameter, as ratios to those in the base model, where all tables agree.
    u-μP has no base model: its base sizes are 1, so its ratios are the sizes themselves."""
    fan_in: float = 1.0
    fan_out: float = 1.0
    depth: float = 1.0


class Power(NamedTuple):
    """fan_in^i · fan_out^o · depth^d as its exponents, which `times` adds and `over` subtracts."""
    fan_in: float = 0.0
    fan_out: float = 0.0
    depth: float = 0.0

    def at(self, size):
        return prod(s**e for s, e in zip(size, self))

    def times(self, other):
        return Power(*(a + b for a, b in zip(self, other)))

    def over(self, other):
        return Power(*(a - b for a, b in zip(self, other)))

    def __str__(self):
        def factor(name, e):
            return {1: name, 0.5: "√" + name}.get(e, f"{name}^{Fraction(e).limit_denominator(16)}")
        above = [factor(n, e) for n, e in zip(self._fields, self) if e > 0]
        below = ["/" + factor(n, -e) for n, e in zip(self._fields, self) if e < 0]
        return "·".join(above or ["1"]) + "".join(below)


class Rule(NamedTuple):
    """One row of a table: how the numbers A, B and C of a parameter w change with its sizes.
    W = A w acts in the network. Its w starts as N(0, B²) and learns by w ← w − C Φ(g_0 … g_t), with
    g_t = ∂loss/∂w in step t and Φ the optimizer. (SGD: Yang & Hu 2021, arXiv:2011.14522.)"""
    init: Power    # B; for a norm gain, the mean of the initial values
    mult: Power    # A; a tied matrix has another one as the readout
    sgd: Power     # C for SGD, with or without momentum
    adamw: Power   # C for AdamW

    @property
    def eps(self):
        """Adam's ε, which is added to √v and must shrink with the gradient g.
        Where C_sgd·g and C_adam·sign(g) are both steps of the right size, g has the size
        C_adam/C_sgd. SP keeps ε. (Yang et al. 2022, arXiv:2203.03466, App. B.3, equal ratios.)"""
        return self.adamw.over(self.sgd)

    @property
    def muon(self):
        """C·s for Muon, whose step is C·s·O with O an orthogonal matrix and s a shape factor.
        The step moves W by A·C·s in spectral norm, which has to be √(fan_out/fan_in): the spectral
        condition. (Yang, Simon & Bernstein 2023, arXiv:2310.17813.)"""
        return Power(fan_in=-1/2, fan_out=1/2).over(self.mult)

def shifted(rule, theta):
    """The same training run in another form: A·θ, B/θ, and the C that moves A·w as before.
    The gradient of w grows by θ with A while w shrinks by θ, so SGD needs C/θ². Adam's step does
    not depend on the size of the gradient, so it needs C/θ. (arXiv:2203.03466, Lemma J.1.)"""
    return Rule(rule.init.over(theta), rule.mult.times(theta),
                rule.sgd.over(theta).over(theta), rule.adamw.over(theta))


class Parametrization(NamedTuple):
    """A rule per role, and the scale of the attention logits."""
    title: str
    rules: dict              # role → Rule
    attention: Power         # factor on q·k; its fan_in is the head dimension
    base_free: bool = False  # u-μP: all base sizes are 1

    @property
    def tied_readout(self):
        """The multiplier of a readout that shares the embedding's matrix. It uses the transpose, so
        its fan_in is the matrix's fan_out. A·w starts at the deviation of the role "output"."""
        output = self.rules["output"]
        return Power(fan_out=output.init.times(output.mult).fan_in).over(self.rules["tied"].init)


ROLES = {
    "embedding": "lookup table (vocabulary, width): one row is read per token",
    "input": "dense first layer: fan_in is data, fan_out a width",
    "hidden": "matrix from width to width",
    "output": "readout: fan_in is a width, fan_out is data",
    "vector": "biases and norm gains of a wide layer: fan_in is 1, fan_out their length",
    "scalar": "no dimension is a width",
    "tied": "embedding and readout in one matrix (vocabulary, width): fan_out is the width",
}

ONE, OUT, ROOT_OUT = Power(), Power(fan_out=1), Power(fan_out=1/2)
PER_OUT, PER_ROOT_OUT = Power(fan_out=-1), Power(fan_out=-1/2)
IN, ROOT_IN = Power(fan_in=1), Power(fan_in=1/2)
PER_IN, PER_ROOT_IN = Power(fan_in=-1), Power(fan_in=-1/2)
OUT_PER_IN, PER_ROOT_IN_OUT = Power(fan_in=-1, fan_out=1), Power(fan_in=-1/2, fan_out=-1/2)

# Initial standard deviations of the base model, as powers of its sizes themselves, not of ratios.
# With them a layer turns inputs of variance 1 into outputs of variance 1. A tied matrix starts like
# a readout, and a multiplier brings its lookup to variance 1 (arXiv:1706.03762, §3.4).
BASE_INIT = {"embedding": ONE, "input": PER_ROOT_IN, "hidden": PER_ROOT_IN, "output": PER_ROOT_IN,
             "vector": ONE, "scalar": ONE, "tied": PER_ROOT_OUT}

# Standard parametrization: lr ignores the width. (arXiv:2203.03466, Table 3, values in brackets.)
SP = {
    #                  init          mult         sgd          adamw
    "embedding": Rule(ONE,          ONE,         ONE,         ONE),
    "input":     Rule(ONE,          ONE,         ONE,         ONE),
    "hidden":    Rule(PER_ROOT_IN,  ONE,         ONE,         ONE),
    "output":    Rule(PER_ROOT_IN,  ONE,         ONE,         ONE),
    "vector":    Rule(ONE,          ONE,         ONE,         ONE),
    "scalar":    Rule(ONE,          ONE,         ONE,         ONE),
    "tied":      Rule(PER_ROOT_OUT, ROOT_OUT,    ONE,         ONE),
}

# Neural tangent parametrization (arXiv:2011.14522), where SGD has learning rate 1. The network's
# output moves by Θ(1), and each feature by Θ(1/√width), which vanishes in a wide network. Adam's
# column is derived: it moves the output of each layer as far as SGD does.
NTK = {
    "embedding": Rule(ONE,          ONE,         ONE,         PER_ROOT_OUT),
    "input":     Rule(ONE,          ONE,         ONE,         PER_ROOT_OUT),
    "hidden":    Rule(ONE,          PER_ROOT_IN, ONE,         PER_ROOT_IN_OUT),
    "output":    Rule(ONE,          PER_ROOT_IN, ONE,         PER_ROOT_IN),
    "vector":    Rule(ONE,          ONE,         ONE,         PER_ROOT_OUT),
    "scalar":    Rule(ONE,          ONE,         ONE,         ONE),
}
NTK["tied"] = NTK["embedding"]

# Maximal update parametrization (arXiv:2203.03466, Table 8). In the paper all widths grow together,
# and its SGD cell for hidden weights is 1. For unequal ratios the cell is fan_out/fan_in.
MUP = {
    "embedding": Rule(ONE,          ONE,         OUT,         ONE),
    "input":     Rule(ONE,          ONE,         OUT,         ONE),
    "hidden":    Rule(PER_ROOT_IN,  ONE,         OUT_PER_IN,  PER_IN),
    "output":    Rule(ONE,          PER_IN,      IN,          ONE),
    "vector":    Rule(ONE,          ONE,         OUT,         ONE),
    "scalar":    Rule(ONE,          ONE,         ONE,         ONE),
}
MUP["tied"] = MUP["embedding"]

# Table 3 has no multipliers: it shifts the readout of Table 8 by θ = fan_in. Table 9 has one SGD
# learning rate: it shifts the readout by √fan_in, and embedding, input and vectors by √fan_out.
MUP_TABLE3 = MUP | {"output": shifted(MUP["output"], IN)}
del MUP_TABLE3["tied"]   # the two uses of a tied matrix would need different learning rates
MUP_TABLE9 = MUP | {"output": shifted(MUP["output"], ROOT_IN)} | {
    role: shifted(MUP[role], ROOT_OUT) for role in ("embedding", "input", "vector", "tied")}

# Unit-scaled μP (Blake et al. 2024, arXiv:2407.17465, Table 2): Table 8 shifted so that all weights
# start at 1, but for the lr of the embedding, and of the input, whose fan_in is fixed. Gradients
# have unit scale too, so SGD has Adam's column (graphcore-research/unit-scaling, optim.py).
U_MUP = {
    "embedding": Rule(ONE,          ONE,         PER_ROOT_OUT, PER_ROOT_OUT),
    "input":     Rule(ONE,          PER_ROOT_IN, ONE,         ONE),
    "hidden":    Rule(ONE,          PER_ROOT_IN, PER_ROOT_IN, PER_ROOT_IN),
    "output":    Rule(ONE,          PER_IN,      ONE,         ONE),
    "vector":    Rule(ONE,          ONE,         ONE,         ONE),
    "scalar":    Rule(ONE,          ONE,         ONE,         ONE),
}

# q·k sums head_dim terms. They start independent, and the sum grows like √head_dim (SP, NTK);
# training aligns them, and it grows like head_dim (μP).
PARAMETRIZATIONS = {
    "sp": Parametrization("SP, standard parametrization", SP, PER_ROOT_IN),
    "ntk": Parametrization("NTK, neural tangent parametrization", NTK, PER_ROOT_IN),
    "mup": Parametrization("μP, maximal update parametrization (Table 8)", MUP, PER_IN),
    "mup-table3": Parametrization("μP as Table 3", MUP_TABLE3, PER_IN),
    "mup-table9": Parametrization("μP as Table 9", MUP_TABLE9, PER_IN),
    "umup": Parametrization("u-μP, unit-scaled μP (absolute sizes)", U_MUP, PER_IN, base_free=True),
}


class DepthRule(NamedTuple):
    """The weight of a residual branch, and factors on the cells of the parameters inside it."""
    branch: Power
    sgd: Power
    adamw: Power
    eps = Rule.eps                                # by the same argument
    muon = property(lambda self: self.adamw)      # neither step depends on the gradient's size

def depth_rule(alpha):
    """Branch weight L^-α, with L the depth relative to the base, and the rates that go with it.
    The updates of all branches, aligned terms, must change the stream by the same amount at every
    depth. So Adam and Muon need lr · L^(α−1), and SGD, whose gradient carries L^-α, lr · L^(2α−1).
    (Yang et al. 2023, arXiv:2310.02244; Dey et al. 2025, arXiv:2505.01618; SGD, Muon: derived.)"""
    return DepthRule(Power(depth=-alpha), Power(depth=2*alpha - 1), Power(depth=alpha - 1))

DEPTH_RULES = {"none": DepthRule(ONE, ONE, ONE),
               "depth-mup": depth_rule(1/2), "completep": depth_rule(1)}
# u-μP's branch weights follow a recursion (unit_scaling.py), and its gradients do not carry them.
U_MUP_DEPTH = DepthRule(ONE, Power(depth=-1/2), Power(depth=-1/2))

# Muon's factor s, by who uses it. The base model's step is lr·s, others' that times the cell.
SHAPE_FACTORS = {
    "spectral": lambda fan_in, fan_out: sqrt(fan_out / fan_in),
    "keller": lambda fan_in, fan_out: sqrt(max(1, fan_out / fan_in)),
    "moonlight": lambda fan_in, fan_out: 0.2 * sqrt(max(fan_in, fan_out)),
    "none": lambda fan_in, fan_out: 1.0,
}
