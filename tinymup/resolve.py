"""A scaling table applied to a model: a row of numbers for each parameter.

A model declares each parameter as a `Spec`. `relative_to` adds the sizes of the base model, and
`resolve` makes each a `Row`, from which initial values, multiplier and updates follow. Any list of
specs will do, also that of a network of your own. Read next: ops.py, the operations."""
from typing import NamedTuple

from .scaling import (
    BASE_INIT, DEPTH_RULES, PARAMETRIZATIONS, PER_ROOT_IN, SHAPE_FACTORS, U_MUP_DEPTH, Size)


class Spec(NamedTuple):
    """A parameter as its model declares it."""
    name: str
    role: str                  # a key of `ROLES`
    shape: tuple               # (fan_in, fan_out) of a matrix, (length,) of a vector
    mean: float = 0.0          # 1 for a norm gain
    std: float = 1.0           # a factor on the table's; 0 if all values start at the mean
    in_branch: bool = False    # inside a residual branch, where depth counts
    head_dim: int = None       # columns per head, of a matrix whose columns are heads
    logits: str = None         # name of the attention logits it makes, which QK-Clip bounds
    lookups: int = 0           # of a lookup table: rows read per token
    constrained: bool = True   # u-μP: dx_factor has to equal y_factor, see unit_scaling.py
    rounded: bool = False      # u-μP's paper rounds its operands to FP8 ("non-critical")
    base_shape: tuple = None   # the same sizes in the base model; None: those of this model
    base_head_dim: int = None

def relative_to(specs, base_specs):
    """The specs, each with the shape of the same parameter in the base model.
    Both lists have the same depth. Errors: ValueError if they name different parameters."""
    specs, base_specs = list(specs), list(base_specs)
    if [spec.name for spec in specs] != [base.name for base in base_specs]:
        raise ValueError("the model and its base model declare different parameters: give both the "
                         "same depth and options, and different sizes only")
    return [spec._replace(base_shape=base.shape, base_head_dim=base.head_dim)
            for spec, base in zip(specs, base_specs)]


class Hyperparameters(NamedTuple):
    """What the user chooses at the base width. The table turns it into numbers per parameter."""
    param: str = "mup"             # a key of `PARAMETRIZATIONS`
    optimizer: str = "adamw"       # sgd, adamw or muon
    depth_rule: str = "none"       # a key of `DEPTH_RULES`; u-μP has its own
    lr: float = 2**-7
    adam_lr: float = None          # of the parameters that Muon leaves to AdamW; None: lr
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_form: str = "independent"
    init_scale: float = 1.0
    embed_mult: float = 1.0
    attn_mult: float = 1.0
    output_mult: float = 1.0
    muon_scale: str = "spectral"   # a key of `SHAPE_FACTORS`
    muon_per_head: bool = False    # orthogonalise the heads of queries, keys and values one by one
    matmul_format: str = "float"   # a key of `MATMUL_FORMATS`; float: no rounding
    rounded: str = "noncritical"   # which products: of specs with `rounded`, or "all"
    loss_scale: float = 1.0        # a factor on all gradients of the backward pass
    alpha_attn: float = 1.0        # u-μP's multipliers
    alpha_ffn: float = 1.0
    alpha_res: float = 1.0
    alpha_res_ratio: float = 1.0
    alpha_loss: float = 1.0
    batch: int = 16                # u-μP scales gradients by the number of tokens they sum over
    seq: int = 64


class Row(NamedTuple):
    """The numbers of one parameter in this run."""
    spec: Spec
    optimizer: str         # that updates it
    mean: float
    std: float
    mult: float
    lr: float              # Muon's step is lr · shape_factor · O
    shape_factor: float    # Muon's s; 1 for the others
    heads: int             # Muon orthogonalises this many blocks of columns separately
    eps: float
    weight_decay: float    # λ
    shrink: float          # the part of w that decay removes per step at the schedule's peak
    name = property(lambda self: self.spec.name)
    role = property(lambda self: self.spec.role)
    shape = property(lambda self: self.spec.shape)


def fans(shape):
    """(fan_in, fan_out). A vector counts as a matrix with fan_in 1."""
    return shape if len(shape) == 2 else (1, *shape)

def base_fans(spec, table):
    """(fan_in, fan_out) in the base model; 1 if there is none."""
    return (1, 1) if table.base_free else fans(spec.base_shape or spec.shape)

def size_of(spec, table, depth_ratio=1.0):
    """The `Size` of a parameter."""
    (fan_in, fan_out), (base_in, base_out) = fans(spec.shape), base_fans(spec, table)
    return Size(fan_in / base_in, fan_out / base_out, depth_ratio if spec.in_branch else 1.0)


def resolve(specs, hyper=Hyperparameters(), depth_ratio=1.0):
    """One `Row` per spec. depth_ratio: the model's depth over that of the base model.
    Independent weight decay is w ← (1 − s_t·λ) w, with s_t the schedule's factor. Coupled, as in
    PyTorch, it is w ← (1 − s_t·lr·λ) w; there λ grows as lr shrinks, so that lr·λ does not change.
    Errors: ValueError for a role without a rule, and for Muon on what is no matrix."""
    return [_row(spec, PARAMETRIZATIONS[hyper.param], hyper, depth_ratio) for spec in specs]

def _row(spec, table, hyper, depth_ratio):
    if spec.role not in table.rules:
        remedy = ("tie embeddings under sp, ntk, mup or mup-table9" if spec.role == "tied"
                  else "give it one of these")
        raise ValueError(f"parameter {spec.name} has role {spec.role!r}, and {hyper.param} has "
                         f"rules for {', '.join(table.rules)} only: {remedy}")
    rule, size = table.rules[spec.role], size_of(spec, table, depth_ratio)
    depth = U_MUP_DEPTH if table.base_free else DEPTH_RULES[hyper.depth_rule]
    base_init = BASE_INIT[spec.role].at(Size(*base_fans(spec, table)))
    user_mult = {"embedding": hyper.embed_mult, "tied": hyper.embed_mult / base_init,
                 "output": hyper.output_mult}

    optimizer, base_lr = hyper.optimizer, hyper.lr
    if optimizer == "muon" and spec.role != "hidden":
        optimizer = "adamw"
        base_lr = hyper.lr if hyper.adam_lr is None else hyper.adam_lr
    per_lr, shape_factor, heads = (muon_numbers(spec, table, hyper) if optimizer == "muon"
                                   else (getattr(rule, optimizer).at(size), 1.0, 1))
    lr = base_lr * per_lr * getattr(depth, optimizer).at(size)
    coupled = hyper.decay_form == "coupled"
    weight_decay = hyper.weight_decay * (base_lr / lr if coupled else 1.0)
    return Row(
        spec, optimizer,
        mean=rule.init.at(size) * spec.mean,
        std=rule.init.at(size) * spec.std * base_init * hyper.init_scale,
        mult=rule.mult.at(size) * user_mult.get(spec.role, 1.0),
        lr=lr, shape_factor=shape_factor, heads=heads,
        eps=hyper.eps * rule.eps.at(size) * depth.eps.at(size),
        weight_decay=weight_decay, shrink=weight_decay * (lr if coupled else 1.0))

def muon_numbers(spec, table, hyper):
    """(C/lr, s, heads) of a matrix. C·s is lr times the table's cell times the base model's s."""
    if len(spec.shape) != 2:
        raise ValueError(f"parameter {spec.name} has shape {spec.shape}, and Muon takes matrices: "
                         "make it (fan_in, fan_out), or give it another role")
    (fan_in, fan_out), (base_in, base_out), heads = spec.shape, base_fans(spec, table), 1
    if hyper.muon_per_head and spec.head_dim:         # the matrix is then the columns of one head
        heads = fan_out // spec.head_dim
        base_out = 1 if table.base_free else spec.base_head_dim or spec.head_dim
        fan_out = spec.head_dim
    shape_factor = SHAPE_FACTORS[hyper.muon_scale]
    s, base_s = shape_factor(fan_in, fan_out), shape_factor(base_in, base_out)
    cell = table.rules[spec.role].muon.at(Size(fan_in / base_in, fan_out / base_out))
    return cell * base_s / s, s, heads


def attention_scale(param, head_dim, base_head_dim):
    """The factor on q·k: 1/√D (SP, NTK), √D₀/D with the base's D₀ (μP), or 1/D (u-μP, no D₀)."""
    table = PARAMETRIZATIONS[param]
    base = 1 if table.base_free else base_head_dim
    return table.attention.at(Size(fan_in=head_dim / base)) * PER_ROOT_IN.at(Size(fan_in=base))

def branch_weight(depth_rule, depth_ratio):
    """The factor on the output of a residual branch."""
    return DEPTH_RULES[depth_rule].branch.at(Size(depth=depth_ratio))

def tied_readout_mult(spec, param):
    """The multiplier of the readout that shares the embedding's matrix, which spec describes."""
    return PARAMETRIZATIONS[param].tied_readout.at(size_of(spec, PARAMETRIZATIONS[param]))
