"""The config of a run. Each option has its default, help text, range and owner in one place.

The command line, its help, the checks and the names in the results file are made from these fields.
"""
import functools
import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import NamedTuple

from numpy import finfo

from .. import mlp, network, transformer
from ..layers import ACTIVATIONS
from ..number_formats import MATMUL_FORMATS
from ..optim import Settings
from ..orthogonalize import COEFFICIENTS
from ..resolve import Hyperparameters
from ..scaling import DEPTH_RULES, PARAMETRIZATIONS, SHAPE_FACTORS

MODELS = {"mlp": mlp, "transformer": transformer}
OPTIMIZERS = ("sgd", "adamw", "muon", "muonclip")
KEY_VERSION = 2   # part of the hash that names a run; raise it when a default changes

# Defaults that depend on other options; in a `Config` they are None. The learning rates are about
# the best powers of two for the default Transformer. Those of u-μP are on a scale of their own.
MUON = {"lr": 2**-5, "momentum": 0.95, "nesterov": True, "adam_lr": 2**-7}
DEFAULTS = {"sgd": {"lr": 2**-1, "momentum": 0.0, "nesterov": False}, "adamw": {"lr": 2**-7},
            "muon": MUON, "muonclip": MUON}
UNIT_MUON = {"lr": 2**-4, "adam_lr": 2**-1}
UNIT_DEFAULTS = {"sgd": {"lr": 2**-5}, "adamw": {"lr": 2**0}, "muon": UNIT_MUON,
                 "muonclip": UNIT_MUON}
RISKY_EPS = 1e-20   # from here up no table makes ε 0 in float32; for less, see `check_eps`
BASE = {"base_width": 64, "base_depth": 2, "base_head_dim": 32}


class Range(NamedTuple):
    """The numbers that an option may have, in words and as a test."""

    words: str
    holds: object


COUNT = Range("1 or more", lambda x: 1 <= x < math.inf)
POSITIVE = Range("above 0 and finite", lambda x: 0 < x < math.inf)
NOT_NEGATIVE = Range("0 or more, and finite", lambda x: 0 <= x < math.inf)
FRACTION = Range("in [0, 1)", lambda x: 0 <= x < 1)
DEPTH = Range("in 1 … 10000", lambda x: 1 <= x <= 10_000)

# Owners: an option is used only by runs whose other options have one of these values.
TRANSFORMER = {"model": ("transformer",)}
UMUP = {"param": ("umup",)}
BASED = {"param": tuple(name for name, table in PARAMETRIZATIONS.items() if not table.base_free)}
ROUNDED = {"matmul_format": tuple(MATMUL_FORMATS)}
MUONS = {"optimizer": ("muon", "muonclip")}
ADAM = {"optimizer": ("adamw", "muon", "muonclip")}
MOMENTUM = {"optimizer": ("sgd", "muon", "muonclip")}


def option(group, default, kind, help, range=None, choices=None, owner={}):
    """A field of `Config`. kind: int, float, bool, str or tuple (a pair of numbers)."""
    return field(default=default, metadata=dict(group=group, kind=kind, help=help, range=range,
                                                choices=choices and tuple(choices), owner=owner))


def number(group, default, help, range=POSITIVE, owner={}, kind=float):
    return option(group, default, kind, help, range, owner=owner)


def whole(group, default, help, range=COUNT, owner={}):
    return option(group, default, int, help, range, owner=owner)


def switch(group, help, default=False, owner={}):
    return option(group, default, bool, f"on or off: {help}", owner=owner)


def choice(group, default, help, choices, owner={}):
    return option(group, default, str, f"{help}: {', '.join(choices)}", None, choices, owner)


M, S, T, W = GROUPS = "model", "scaling", "training", "input, output, machine"


@dataclass(frozen=True)
class Config:
    """All that the result of a run depends on. Flags of train.py have the same names."""

    model: str = choice(M, "transformer", "what is trained", MODELS)
    param: str = choice(S, "mup", "parametrization", PARAMETRIZATIONS)
    optimizer: str = choice(T, "adamw", "what updates the parameters", OPTIMIZERS)
    width: int = whole(M, 128, "size of the residual stream, or of a hidden layer")
    depth: int = whole(M, 2, "blocks, or the MLP's hidden layers after the first", DEPTH)
    head_dim: int = whole(M, 32, "size of an attention head; heads = width / head-dim",
                          owner=TRANSFORMER)
    base_width: int = whole(S, None, "at this width all parametrizations but u-μP are the same",
                            owner=BASED)
    base_depth: int = whole(S, None, "at this depth all depth rules are the same",
                            owner=BASED | TRANSFORMER)
    base_head_dim: int = whole(S, None, "at this head size μP's attention scale is SP's",
                               owner=BASED | TRANSFORMER)
    depth_rule: str = choice(S, "none", "scaling of residual branches with depth", DEPTH_RULES,
                             owner=BASED | TRANSFORMER)
    ffn: str = choice(M, "gelu", "activation", [*ACTIVATIONS, "swiglu"])
    tied: bool = switch(M, "embedding and readout are one matrix", owner=TRANSFORMER)
    gains: bool = switch(M, "learned gains after the norms", owner=TRANSFORMER)
    biases: bool = switch(M, "biases after the matrices", owner=TRANSFORMER)
    zero_readout: bool = switch(M, "readout starts at 0")
    zero_query: bool = switch(M, "queries start at 0", owner=TRANSFORMER)
    lr: float = number(T, None, "peak learning rate at the base width")
    adam_lr: float = number(T, None, "lr of the parameters that Muon leaves to AdamW", owner=MUONS)
    init_scale: float = number(S, 1.0, "factor on the initial standard deviations", owner=BASED)
    embed_mult: float = number(S, 1.0, "factor on the embedding", owner=BASED | TRANSFORMER)
    attn_mult: float = number(S, 1.0, "factor on the attention logits", owner=BASED | TRANSFORMER)
    output_mult: float = number(S, 1.0, "factor on the logits", owner=BASED)
    alpha_attn: float = number(S, 1.0, "weight of the attention logits", owner=UMUP | TRANSFORMER)
    alpha_ffn: float = number(S, 1.0, "weight of the activation's input", owner=UMUP)
    alpha_res: float = number(S, 1.0, "weight of residual branches against the embedding",
                              owner=UMUP | TRANSFORMER)
    alpha_res_ratio: float = number(S, 1.0, "weight of attention against feed-forward branches",
                                    owner=UMUP | TRANSFORMER)
    alpha_loss: float = number(S, 1.0, "weight of the logits in the loss", owner=UMUP)
    matmul_format: str = choice(S, "float", "simulated number format of the operands of matrix "
                                "products", ["float", *MATMUL_FORMATS])
    rounded: str = choice(S, "noncritical", "products with that format (noncritical: of query, "
                          "key, value, up and gate, or the MLP's hidden matrices)",
                          ["noncritical", "all"], owner=ROUNDED)
    loss_scale: float = number(S, 1.0, "factor on all gradients of the backward pass, divided out "
                               "before the optimizer", owner=ROUNDED)
    momentum: float = number(T, None, "of SGD and Muon", FRACTION, owner=MOMENTUM)
    nesterov: bool = switch(T, "momentum looks one step ahead", None, owner=MOMENTUM)
    momentum_form: str = choice(T, "ema", "momentum of Muon", ["ema", "sum"], owner=MUONS)
    muon_scale: str = choice(T, "spectral", "shape factor of Muon's step", SHAPE_FACTORS,
                             owner=MUONS)
    muon_per_head: bool = switch(T, "queries, keys, values orthogonalised head by head",
                                 owner=MUONS | TRANSFORMER)
    coefficients: str = choice(T, "keller", "Newton–Schulz polynomial", COEFFICIENTS, owner=MUONS)
    newton_schulz_steps: int = whole(T, None, "by default as many as the polynomial is made for",
                                     owner=MUONS)
    qk_clip_threshold: float = number(T, 100.0, "largest attention logit that MuonClip allows",
                                      owner={"optimizer": ("muonclip",)})
    betas: tuple = number(T, (0.9, 0.99), "of AdamW, as in 0.9,0.99", FRACTION, ADAM, kind=tuple)
    eps: float = number(T, 1e-8, "of AdamW, at the base width", owner=ADAM)
    weight_decay: float = number(T, 0.0, "λ, per step at the schedule's peak", NOT_NEGATIVE)
    decay_form: str = choice(T, "independent", "w shrinks by λ a step, or by λ times --lr",
                             ["independent", "coupled"])
    clip: float = number(T, 0.0, "largest norm of all gradients together; 0: none", NOT_NEGATIVE)
    steps: int = whole(T, 300, "updates")
    warmup: int = whole(T, None, "steps of linear warm-up; by default a tenth, at most 20",
                        NOT_NEGATIVE)
    schedule: str = choice(T, "linear", "learning rate after the warm-up",
                           ["constant", "linear", "cosine", "wsd"])
    batch: int = whole(T, 16, "sequences per step")
    seq: int = whole(T, 64, "bytes per sequence")
    seed: int = whole(T, 0, "of initial parameters and batches", NOT_NEGATIVE)
    data: tuple = option(W, (), str, "files, directories or globs of text; else Python's library")
    dtype: str = choice(W, "float32", "of all arrays", ["float32", "float64"])
    device: str = choice(W, "cpu", "where to compute", ["cpu", "gpu"])

    def key(self, digest):
        """12 hex digits that name the run: a hash of the corpus and of all non-default values."""
        special = {name: value for name, value in vars(self).items()
                   if value != self.__dataclass_fields__[name].default}
        text = json.dumps([KEY_VERSION, special, digest], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


FIELDS = {f.name: f for f in fields(Config)}
CHOICES, RANGES = ({name: f.metadata[kind] for name, f in FIELDS.items() if f.metadata[kind]}
                   for kind in ("choices", "range"))
OWNERS = "model", "param", "optimizer", "matmul_format"
# Options that do not go together: (test of a config, error message).
CONFLICTS = [
    (lambda c: c.warmup >= c.steps,
     "--warmup {c.warmup} fills all --steps {c.steps}: make it smaller than the steps"),
    (lambda c: c.model == "mlp" and c.optimizer == "muonclip",
     "--optimizer muonclip: the mlp has no attention logits to clip; use muon"),
    (lambda c: c.model == "mlp" and c.ffn not in ACTIVATIONS,
     "--ffn {c.ffn}: the mlp has " + " and ".join(ACTIVATIONS)),
    (lambda c: c.tied and "tied" not in PARAMETRIZATIONS[c.param].rules,
     "--tied on: --param {c.param} has no rule for a tied matrix; use mup"),
    (lambda c: c.tied and c.zero_readout,
     "--zero-readout on and --tied on: the readout is the embedding; leave one of them out"),
    (lambda c: c.model == "transformer" and c.width % c.head_dim != 0,
     "--width {c.width} is not a multiple of --head-dim {c.head_dim}: change one of them"),
    (lambda c: c.model == "transformer" and c.head_dim % 2 != 0,
     "--head-dim {c.head_dim} is odd, and RoPE rotates pairs: make it even"),
]


def flag(name):
    """The command line's name of a field."""
    return "--" + name.replace("_", "-")


def spelled(value):
    """A field's value as one types it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


@functools.cache
def strangers(*owners):
    """{option that a config with these `OWNERS` does not use: the reason, as "--param sp"}"""
    at, found = dict(zip(OWNERS, owners)), {}
    for name, f in FIELDS.items():
        for owner, values in f.metadata["owner"].items():
            if at[owner] not in values:
                found.setdefault(name, f"{flag(owner)} {at[owner]}")
    return found


def unused(config):
    """{option that the config does not use: the reason}, see `strangers`."""
    return strangers(*(getattr(config, owner) for owner in OWNERS))


def changed(config, values):
    """The config with other values. `dataclasses.replace` takes seconds in a large sweep."""
    other = object.__new__(Config)
    vars(other).update(vars(config) | values)
    return other


def normalised(config):
    """The config, with each option that it does not use set back to its default."""
    return changed(config, {name: FIELDS[name].default for name in unused(config)})


def complete(config):
    """The config, checked, with the defaults of all its options filled in.

    Errors: ValueError, one line, for a field that is out of range or not used by this config, and
    for fields that do not go together.
    """
    given, strange = vars(config), unused(config)
    for name, choices in CHOICES.items():
        if given[name] not in choices:
            raise ValueError(f"{flag(name)} {given[name]}: must be one of {', '.join(choices)}")
    for name, who in strange.items():
        if given[name] != FIELDS[name].default:
            raise ValueError(f"{flag(name)} {spelled(given[name])} has no effect with {who}: "
                             "leave it out")
    unit = PARAMETRIZATIONS[config.param].base_free
    defaults = BASE | DEFAULTS[config.optimizer] | {"warmup": min(20, config.steps // 10)}
    defaults |= UNIT_DEFAULTS[config.optimizer] if unit else {}
    c = changed(config, {name: value for name, value in defaults.items()
                         if given[name] is None and name not in strange})
    for name in RANGES:
        check_range(name, getattr(c, name))
    for conflict, message in CONFLICTS:
        if conflict(c):
            raise ValueError(message.format(c=c))
    if c.eps < RISKY_EPS:
        check_eps(c)
    return c


@functools.cache
def check_range(name, value):
    """Errors: ValueError if the value of a field, or a member of a pair, is out of its range."""
    values = value if isinstance(value, tuple) else (value,)
    if value is not None and not all(map(RANGES[name].holds, values)):
        raise ValueError(f"{flag(name)} {spelled(value)}: must be {RANGES[name].words}")


def check_eps(config):
    """Errors: ValueError if ε, scaled by the table, is so small that the dtype may make it 0."""
    least = float(finfo(config.dtype).smallest_normal)
    rows = [row for row in build(config).rows if row.optimizer == "adamw"]
    if rows:
        row = min(rows, key=lambda row: row.eps)
        used = row.eps * math.sqrt(1 - config.betas[1])       # in the first step
        if used < least:
            raise ValueError(
                f"--eps {config.eps}: {row.name} would get {used:.3g} in the first step, and "
                f"{least:.3g} is the smallest normal number of --dtype {config.dtype}: "
                "choose a larger one")


def same_program(config):
    """The complete config under the one name of all that train alike, by two rules.

    At the base width and head size all parametrizations with a base are SP, and at the base depth
    all depth rules are none, bit for bit.
    """
    c, names = config, {}
    if c.depth == c.base_depth:
        names["depth_rule"] = "none"
    if c.width == c.base_width and (c.model == "mlp" or c.head_dim == c.base_head_dim):
        names["param"] = "sp"
    return changed(c, names) if names else c


def restored(values):
    """The complete `Config` of a record's dict. (JSON has turned its pairs into lists.)"""
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return complete(normalised(Config(**given)))


def picked(kind, config, **changes):
    """A NamedTuple of type kind: its fields from the config, where that has them and not None."""
    values = {name: getattr(config, name) for name in kind._fields if name in FIELDS}
    return kind(**{name: v for name, v in values.items() if v is not None} | changes)


def build(config):
    """The `network.Network` of a complete config."""
    model = MODELS[config.model]
    here = picked(model.Architecture, config)
    base = {name.removeprefix("base_"): getattr(config, name) for name in BASE}
    base = here._replace(**{name: size for name, size in base.items() if size is not None})
    optimizer = "muon" if config.optimizer == "muonclip" else config.optimizer
    return network.build(model, here, base, picked(Hyperparameters, config, optimizer=optimizer))


def settings(config):
    """The `optim.Settings` of a complete config."""
    return picked(Settings, config)

record_of = asdict   # the config as a results file holds it
