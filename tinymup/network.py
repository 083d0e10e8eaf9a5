"""From a config to a network: which model, of which sizes, with which numbers of the scaling table."""
import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from . import mlp, ops, scaling, transformer

MODELS = {"mlp": mlp, "transformer": transformer}
OPTIMIZERS = {"sgd": {"lr": 2**-2, "momentum": 0.0}, "adamw": {"lr": 2**-6, "momentum": 0.0}}   # and what None stands for


@dataclass(frozen=True)
class Config:
    """All that a run's result depends on. Flags of train.py have the same names."""

    model: str = "transformer"
    param: str = "mup"
    optimizer: str = "adamw"
    width: int = 128
    depth: int = 2                 # blocks; hidden layers of the MLP
    head_dim: int = 32
    base_width: int = 64           # here all parametrizations are one
    base_depth: int = 2
    base_head_dim: int = 32
    depth_rule: str = "none"
    ffn: str = "gelu"
    tied: bool = False
    gains: bool = False
    biases: bool = False
    zero_readout: bool = False
    zero_query: bool = False
    lr: float = None               # at the base width; None: as OPTIMIZERS says
    init_scale: float = 1.0        # factors on the table's numbers
    embed_mult: float = 1.0
    attn_mult: float = 1.0
    output_mult: float = 1.0
    momentum: float = None         # of SGD; None: as OPTIMIZERS says
    nesterov: bool = False
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
    c = replace(config, **{name: value for name, value in OPTIMIZERS[config.optimizer].items() if getattr(config, name) is None})
    for name in ("width", "depth", "head_dim", "base_width", "base_depth", "base_head_dim", "steps", "batch", "seq", "lr", "init_scale"):
        if not (getattr(c, name) > 0 and math.isfinite(getattr(c, name))):
            raise ValueError(f"{flag(name)} {getattr(c, name)}: must be above 0")
    for name in ("warmup", "seed", "clip", "weight_decay", "eps"):
        if not (getattr(c, name) >= 0 and math.isfinite(getattr(c, name))):
            raise ValueError(f"{flag(name)} {getattr(c, name)}: must be 0 or more")
    if c.warmup >= c.steps:
        raise ValueError(f"--warmup {c.warmup} fills all --steps {c.steps}: make it smaller than the steps")
    if not all(0 <= beta < 1 for beta in (*c.betas, c.momentum)):
        raise ValueError(f"--betas {c.betas[0]} {c.betas[1]} --momentum {c.momentum}: each must be in [0, 1)")
    if c.model == "transformer":
        if c.width % c.head_dim:
            raise ValueError(f"--width {c.width} is not a multiple of --head-dim {c.head_dim}: change one of them")
        if c.head_dim % 2:
            raise ValueError(f"--head-dim {c.head_dim} is odd, and RoPE turns pairs: make it even")
    else:
        defaults = Config()
        for name in ("head_dim", "base_head_dim", "depth_rule", "tied", "gains", "biases", "zero_query", "embed_mult", "attn_mult"):
            if getattr(c, name) != getattr(defaults, name):
                raise ValueError(f"{flag(name)} means nothing to --model mlp: leave it out, or train the transformer")
        if c.ffn not in ops.ACTIVATIONS:
            raise ValueError(f"--ffn {c.ffn}: the mlp has {' and '.join(ops.ACTIVATIONS)}")
    return c


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
        """(B·T, V) for ids (B, T)."""
        return self.model.forward(params, ids, self.architecture, self.scales)[0]

    def loss(self, params, ids, targets):
        """Mean cross-entropy in nats, a device scalar, for ids and targets (B, T)."""
        return ops.cross_entropy(self.logits(params, ids), targets.reshape(-1))[0]

    def loss_and_gradients(self, params, ids, targets, watch=ops.ignore):
        """The loss, and its gradient with respect to every parameter."""
        logits, cache = self.model.forward(params, ids, self.architecture, self.scales, watch)
        loss, c_loss = ops.cross_entropy(logits, targets.reshape(-1))
        return loss, self.model.backward(ops.cross_entropy_backward(c_loss), cache)


def build(config):
    """The `Network` of a config."""
    c, model = config, MODELS[config.model]
    if c.model == "mlp":
        here = mlp.Architecture(c.width, c.depth, c.ffn, c.zero_readout)
    else:
        here = transformer.Architecture(c.width, c.depth, c.head_dim, c.ffn, c.tied, c.gains, c.biases, c.zero_readout, c.zero_query)
    specs = [scaling.Spec(name, role, shape, base[2], mean, std, in_branch) for (name, role, shape, mean, std, in_branch), base
             in zip(model.shapes(here), model.shapes(here._replace(width=c.base_width)))]
    hyper = scaling.Hyperparameters(lr=c.lr, eps=c.eps, weight_decay=c.weight_decay, decay_form=c.decay_form,
                                    init_scale=c.init_scale, embed_mult=c.embed_mult, output_mult=c.output_mult)
    rows = scaling.resolve(specs, c.param, c.optimizer, hyper, c.depth / c.base_depth, c.depth_rule)
    mult = {row.name: ops.Mult.exact(row.mult) for row in rows}
    if c.tied:
        mult["output"] = ops.Mult.exact(c.output_mult * scaling.tied_readout_mult(c.param, specs[0]))
    attention = c.attn_mult * scaling.attention_scale(c.param, c.head_dim, c.base_head_dim)
    branch = (1.0, scaling.branch_weight(c.depth_rule, c.depth / c.base_depth))
    return Network(model, here, rows, ops.Scales(mult, attention, (branch,) * (2 * c.depth)))
