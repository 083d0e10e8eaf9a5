"""From a config to a network: which model, of which sizes, with which numbers of the scaling table."""
import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from . import mlp, ops, scaling, transformer, unit_scaling
from .data import VOCAB
from .number_formats import MATMUL_FORMATS

MODELS = {"mlp": mlp, "transformer": transformer}
OPTIMIZERS = ("sgd", "adamw", "muon", "muonclip")
# What a Config's None stands for. Learning rates are near the best of 2^k for the default Transformer; u-μP's are of another scale.
DEFAULTS = {"sgd": {"lr": 2**-1, "momentum": 0.0, "nesterov": False}, "adamw": {"lr": 2**-7, "momentum": 0.0, "nesterov": False},
            "muon": {"lr": 2**-5, "momentum": 0.95, "nesterov": True, "adam_lr": 2**-7}}
DEFAULTS["muonclip"] = DEFAULTS["muon"]
UNIT_DEFAULTS = {"sgd": {"lr": 2**-5}, "adamw": {"lr": 2**0}, "muon": {"lr": 2**-4, "adam_lr": 2**-1}}
UNIT_DEFAULTS["muonclip"] = UNIT_DEFAULTS["muon"]
BASE = {"base_width": 64, "base_depth": 2, "base_head_dim": 32}
UNIT_ONLY = ("alpha_attn", "alpha_ffn", "alpha_res", "alpha_res_ratio", "alpha_loss")


@dataclass(frozen=True)
class Config:
    """All that a run's result depends on. Flags of train.py have the same names."""

    model: str = "transformer"
    param: str = "mup"
    optimizer: str = "adamw"
    width: int = 128
    depth: int = 2                 # blocks; hidden layers of the MLP
    head_dim: int = 32
    base_width: int = None         # here all parametrizations but u-μP are one; None: as BASE says
    base_depth: int = None
    base_head_dim: int = None
    depth_rule: str = "none"
    ffn: str = "gelu"
    tied: bool = False
    gains: bool = False
    biases: bool = False
    zero_readout: bool = False
    zero_query: bool = False
    lr: float = None               # at the base width; None: as DEFAULTS says
    adam_lr: float = None          # of what Muon leaves to AdamW
    init_scale: float = 1.0        # factors on the table's numbers
    embed_mult: float = 1.0
    attn_mult: float = 1.0
    output_mult: float = 1.0
    alpha_attn: float = 1.0        # u-μP's hyperparameters
    alpha_ffn: float = 1.0
    alpha_res: float = 1.0
    alpha_res_ratio: float = 1.0
    alpha_loss: float = 1.0
    matmul_format: str = "float"   # the operands' simulated format in hidden matrices; float: as they are
    momentum: float = None         # of SGD and Muon
    nesterov: bool = None
    momentum_form: str = "ema"     # of Muon
    muon_scale: str = "spectral"
    muon_per_head: bool = False
    coefficients: str = "keller"
    newton_schulz_steps: int = None
    qk_clip_threshold: float = 100.0
    betas: tuple = (0.9, 0.99)     # of AdamW
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_form: str = "independent"
    clip: float = 0.0              # 0: off
    steps: int = 300
    warmup: int = 20
    schedule: str = "linear"
    batch: int = 16
    seq: int = 64
    seed: int = 0
    data: tuple = ()               # paths; none: the standard library's source
    dtype: str = "float32"
    device: str = "cpu"

    def key(self, digest):
        """12 hex digits that name the run: a hash of this config and of the corpus."""
        return hashlib.sha256(json.dumps([asdict(self), digest], sort_keys=True).encode()).hexdigest()[:12]


def complete(config):
    """The config with its Nones filled in, checked.

    Errors: ValueError, one line, where it describes no network, or sets what its network does not have.
    """
    unit = scaling.PARAMETRIZATIONS[config.param].base_free
    if unit and any(getattr(config, name) is not None for name in BASE):
        raise ValueError("--base-width, --base-depth, --base-head-dim mean nothing to umup: its sizes are absolute, no base model exists; leave them out")
    defaults = DEFAULTS[config.optimizer] | (UNIT_DEFAULTS[config.optimizer] if unit else BASE)
    c = replace(config, **{name: value for name, value in defaults.items() if getattr(config, name) is None})
    check_numbers(c)
    for name in ("depth_rule", "init_scale", "embed_mult", "attn_mult", "output_mult") if unit else UNIT_ONLY:
        reject(c, name, f"--param {c.param}")
    check_mlp(c) if c.model == "mlp" else check_transformer(c)
    return c


def check_numbers(c):
    """Errors: ValueError for a number that is out of its range."""
    for name in ("width", "depth", "head_dim", "base_width", "base_depth", "base_head_dim", "steps", "batch", "seq", "lr", "adam_lr", "eps",
                 "init_scale", "embed_mult", "attn_mult", "output_mult", "newton_schulz_steps", "qk_clip_threshold", *UNIT_ONLY):
        if getattr(c, name) is not None and not 0 < getattr(c, name) < math.inf:
            raise ValueError(f"{flag(name)} {getattr(c, name)}: must be above 0 and finite")
    for name in ("warmup", "seed", "clip", "weight_decay"):
        if not 0 <= getattr(c, name) < math.inf:
            raise ValueError(f"{flag(name)} {getattr(c, name)}: must be 0 or more, and finite")
    if c.warmup >= c.steps:
        raise ValueError(f"--warmup {c.warmup} fills all --steps {c.steps}: make it smaller than the steps")
    if not all(0 <= beta < 1 for beta in (*c.betas, c.momentum)):
        raise ValueError(f"--betas {c.betas[0]},{c.betas[1]} --momentum {c.momentum}: each must be in [0, 1)")


def check_mlp(c):
    """Errors: ValueError for what an MLP does not have."""
    for name in ("head_dim", "base_head_dim", "depth_rule", "tied", "gains", "biases", "zero_query", "embed_mult", "attn_mult",
                 "alpha_attn", "alpha_res", "alpha_res_ratio", "muon_per_head"):
        reject(c, name, "--model mlp")
    if c.optimizer == "muonclip":
        raise ValueError("--optimizer muonclip: the mlp has no attention logits to clip; use muon")
    if c.ffn not in ops.ACTIVATIONS:
        raise ValueError(f"--ffn {c.ffn}: the mlp has {' and '.join(ops.ACTIVATIONS)}")


def check_transformer(c):
    """Errors: ValueError for sizes and choices that do not go together."""
    if c.tied and c.zero_readout:
        raise ValueError("--zero-readout on means nothing to --tied on: the readout is the embedding; leave one of them out")
    if c.width % c.head_dim:
        raise ValueError(f"--width {c.width} is not a multiple of --head-dim {c.head_dim}: change one of them")
    if c.head_dim % 2:
        raise ValueError(f"--head-dim {c.head_dim} is odd, and RoPE turns pairs: make it even")


def reject(config, name, owner):
    """Errors: ValueError where the config sets a field that means nothing to its model or parametrization."""
    default = getattr(Config(), name)
    if getattr(config, name) not in (default, BASE.get(name)):
        raise ValueError(f"{flag(name)} means nothing to {owner}: leave it out")


def flag(name):
    """The command line's name of a config field."""
    return "--" + name.replace("_", "-")


class Network(NamedTuple):
    """A config, resolved: the model's code, its architecture, a row of numbers per parameter and the scales of its passes."""

    model: object
    architecture: tuple
    rows: list
    scales: ops.Scales

    def logits(self, params, ids):
        """(B·T, V) for ids (B, T), as the softmax of loss and sampling takes them."""
        return ops.times(self.scales.logits, self.model.forward(params, ids, self.architecture, self.scales)[0])

    def loss(self, params, ids, targets):
        """Mean cross-entropy in nats, a device scalar, for ids and targets (B, T)."""
        return ops.cross_entropy(self.logits(params, ids), targets.reshape(-1))[0]

    def loss_and_gradients(self, params, ids, targets, watch=ops.ignore):
        """The loss, and its gradient with respect to every parameter (under u-μP times the factors of `unit_scaling`)."""
        logits, cache = self.model.forward(params, ids, self.architecture, self.scales, watch)
        loss, c_loss = ops.cross_entropy(logits, targets.reshape(-1), self.scales.logits, self.scales.dlogits)
        return loss, self.model.backward(ops.cross_entropy_backward(c_loss), cache)


def build(config):
    """The `Network` of a complete config."""
    c, model = config, MODELS[config.model]
    if c.model == "mlp":
        here = mlp.Architecture(c.width, c.depth, c.ffn, c.zero_readout)
    else:
        here = transformer.Architecture(c.width, c.depth, c.head_dim, c.ffn, c.tied, c.gains, c.biases, c.zero_readout, c.zero_query)
    base = here._replace(width=c.base_width or c.width)
    specs = []
    for (name, role, shape, mean, std, in_branch), (_, _, base_shape, *_) in zip(model.shapes(here), model.shapes(base)):
        split = c.muon_per_head and name.endswith((".query", ".key", ".value"))
        heads = (c.width // c.head_dim, c.head_dim, c.base_head_dim) if split else None
        specs.append(scaling.Spec(name, role, shape, base_shape, mean, std, in_branch, heads))
    hyper = scaling.Hyperparameters(c.lr, c.adam_lr, c.eps, c.weight_decay, c.decay_form, c.init_scale, c.embed_mult, c.output_mult, c.muon_scale)
    optimizer = "muon" if c.optimizer == "muonclip" else c.optimizer
    rows = scaling.resolve(specs, c.param, optimizer, hyper, c.depth / (c.base_depth or 1), c.depth_rule)
    scales = unit_scales(c, rows) if scaling.PARAMETRIZATIONS[c.param].base_free else exact_scales(c, rows, specs)
    if c.matmul_format != "float":
        formats = MATMUL_FORMATS[c.matmul_format]
        low = [row.name for row in rows if row.role == "hidden" and not row.name.endswith((".attention_out", ".down"))]
        scales = scales._replace(mult=scales.mult | {name: scales.mult[name]._replace(formats=formats) for name in low})
    return Network(model, here, rows, scales)


def exact_scales(c, rows, specs):
    """The scales of SP, NTK and μP: a multiplier per parameter, and gradients that follow the chain rule."""
    mult = {row.name: ops.Mult.exact(row.mult) for row in rows}
    if c.tied:
        mult["output"] = ops.Mult.exact(c.output_mult * scaling.tied_readout_mult(c.param, specs[0]))
    attention = c.attn_mult * scaling.attention_scale(c.param, c.head_dim, c.base_head_dim)
    weight = scaling.branch_weight(c.depth_rule, c.depth / c.base_depth)
    return ops.Scales(mult, attention, (ops.Branch(1.0, weight, weight, 1.0),) * (2 * c.depth))


def unit_scales(c, rows):
    """The scales of u-μP: the table's multipliers forward, and the factors of `unit_scaling` for everything else.

    FFN layers take the input gradient's own factor, as unit_scaling's MLP does; those that read the residual stream next to others
    (queries, keys, values), and attention_out, keep the forward factor.
    """
    tokens = c.batch * c.seq
    mult = {}
    for row in rows:
        fan_in, fan_out = scaling.fans(row.shape)
        if row.name == "embedding":
            lookups = tokens * (mlp.CONTEXT if c.model == "mlp" else 1)
            dx, dw = None, unit_scaling.embedding(VOCAB, lookups)
        elif row.role in ("vector", "scalar"):
            dx, dw = row.mult, unit_scaling.norm_gain(tokens)
        elif row.role == "output":
            _, dx, dw = unit_scaling.linear_readout(fan_in, fan_out, tokens)
        else:
            _, dx, dw = unit_scaling.linear(fan_in, fan_out, tokens, constrained=not row.name.endswith((".gate", ".up", ".down")))
        mult[row.name] = ops.Mult(row.mult, dx, dw)
    activation = {"swiglu": unit_scaling.silu_glu, "gelu": unit_scaling.gelu, "relu": unit_scaling.relu}[c.ffn](c.alpha_ffn)
    if c.model == "mlp":
        return ops.Scales(mult, None, activation=activation, activation_alpha=c.alpha_ffn, logits=c.alpha_loss, dlogits=unit_scaling.cross_entropy(VOCAB))
    branches = tuple(ops.Branch(skip=b, amount=a, enter=1.0, leave=a) for a, b in unit_scaling.residual(c.depth, c.alpha_res, c.alpha_res_ratio))
    return ops.Scales(mult, c.alpha_attn * scaling.attention_scale(c.param, c.head_dim, None), branches,
                      unit_scaling.attention(c.alpha_attn, c.head_dim, c.seq), activation, c.alpha_ffn, c.alpha_loss, unit_scaling.cross_entropy(VOCAB))
