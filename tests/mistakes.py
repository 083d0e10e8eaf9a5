"""Mistakes that a port can make, and the case that notices each: `python tests/mistakes.py`.

A mistake is one or several changes of the package: of a table's powers, of what is declared or
resolved, of a function's arguments or result, or of its text. Inside `made` the package computes
what a program with this mistake computes. The script writes experiments/results/mistakes.csv, and
test_vectors.py holds every line of it.
"""
import csv
import inspect
import math
import textwrap
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import numpy as np

import make_vectors as vectors
from tinymup import (
    layers, mlp, network, ops, optim, orthogonalize, resolve, scaling, transformer, unit_scaling)
from tinymup.lab.config import complete
from tinymup.lab.vectors import common, difference
from tinymup.number_formats import FORMATS, quantize
from tinymup.scaling import (
    ONE, PER_IN, PER_OUT, PER_ROOT_IN, PER_ROOT_OUT, SHAPE_FACTORS, Power, Rule, Size)

RESULTS = Path(__file__).parent.parent / "experiments/results/mistakes.csv"
LEAST = 1e-4       # a mistake moves some quantity of a case by this part of its norm …
ABOVE_NOISE = 3    # … and by this many times what single precision moves it


@contextmanager
def edited(function, *changes):
    """A function with parts of its text exchanged: old, new, old, new, …

    The new code is put inside the function, so that modules that imported it run it too.
    """
    plain = inspect.unwrap(function)                              # inside `fused`
    text = textwrap.dedent(inspect.getsource(plain))
    for old, new in zip(changes[::2], changes[1::2]):
        assert old in text, f"{plain.__qualname__} has no {old!r}: bring this mistake up to date"
        text = text.replace(old, new)
    found = {}
    exec(text[text.index("def "):], plain.__globals__, found)     # without the decorators
    code, plain.__code__ = plain.__code__, found.popitem()[1].__code__
    try:
        yield
    finally:
        plain.__code__ = code


def replaced(dictionary, key, **fields):
    """A NamedTuple of a dict with other fields."""
    return patch.dict(dictionary, {key: dictionary[key]._replace(**fields)})


def wrapped(module, name, wrapper):
    """A function of a module as wrapper(function)."""
    return patch.object(module, name, wrapper(getattr(module, name)))


# Each of these gives a function that makes a context manager, which can be entered only once.
edit, wrap, value, attribute = (partial(partial, f)
                                for f in (edited, wrapped, patch.dict, patch.object))


def rule(param, role, **powers):
    """Other powers in one row of a table."""
    return partial(replaced, scaling.PARAMETRIZATIONS[param].rules, role, **powers)


def table(param, **fields):
    """Other fields of a parametrization."""
    return partial(replaced, scaling.PARAMETRIZATIONS, param, **fields)


def rate(param, role, **powers):
    """Other powers for the learning rates of a role, or of a depth rule. ε stays as it was."""
    found = scaling.PARAMETRIZATIONS.get(param)
    rules = found.rules if found else scaling.DEPTH_RULES

    def wrapper(resolve):
        def call(*args):
            right = resolve(*args)
            with replaced(rules, role, **powers):
                return [row._replace(lr=wrong.lr) for row, wrong in zip(right, resolve(*args))]
        return call
    return wrap(network, "resolve", wrapper)


def specs(change, model=transformer):
    """Other declarations: change(spec)."""
    return wrap(model, "specs", lambda f: lambda a: [change(spec) for spec in f(a)])


def rows(change):
    """Other rows: change(row, hyperparameters)."""
    return wrap(network, "resolve", lambda f: lambda specs, hyper, depth_ratio: [
        change(row, hyper) for row in f(specs, hyper, depth_ratio)])


def exact(change):
    """Other scales of SP, NTK and μP: change(scales, rows, architecture, base, hyperparameters)."""
    return wrap(network, "exact_scales", lambda f: lambda *args: change(f(*args), *args))


def unit(change):
    """Other scales of u-μP: change(scales, hyperparameters)."""
    return wrap(unit_scaling, "scales", lambda f: lambda *args: change(f(*args), args[-1]))


def heads(change):
    """Other queries, keys and values (B, T, H, D) in the attention: change(array)."""
    return wrap(ops, "attention", lambda f: lambda q, k, v, scale, mult: f(
        change(q), change(k), change(v), scale, mult))


def gelu_with(gate):
    """GELU with another gate."""
    return value(layers.ACTIVATIONS, gelu=(lambda x, factor, alpha: (
        factor * x * gate(alpha * x), ops.gelu(x, factor, alpha)[1]), ops.gelu_backward))


def branches(**fields):
    """Other weights of the residual branches."""
    return exact(lambda s, *_: s._replace(branches=tuple(b._replace(**fields) for b in s.branches)))


def by_columns(x):
    """Heads (B, T, H, D) as if their columns were h, h + H, … in place of D neighbours."""
    return x.reshape(*x.shape[:2], x.shape[3], x.shape[2]).swapaxes(2, 3)


def decay_after(step):
    """An optimizer's step, and then weight decay."""
    def both(self, params, grads, t, factor):
        step(self, params, grads, t, factor)
        for row in self.rows:
            params[row.name] *= 1 - factor * row.shrink
    return both


def in_bf16(momentum):
    """Momentum that is kept in bf16."""
    def rounded(m, *args, **numbers):
        momentum(m, *args, **numbers)
        m[:] = quantize(m, FORMATS["bf16"])
    return rounded


def interleaved(rope):
    """RoPE of the pairs (2i, 2i + 1)."""
    def turned(x, angles):
        half = x.shape[-1] // 2
        order = np.arange(x.shape[-1]).reshape(half, 2).T.reshape(-1)
        y, cache = rope(x[..., order], angles)
        return y[..., np.argsort(order)], cache
    return turned


@contextmanager
def made(makers):
    """The package with the changes of a mistake."""
    with ExitStack() as stack:
        for maker in makers:
            stack.enter_context(maker())
        yield


STEP, RUN, NEWTON = optim.Optimizer.step, vectors.run, orthogonalize.newton_schulz
BASE_DEPTH = vectors.LOUD.base_depth
SHRINK = "w *= 1 - factor * row.shrink"
LEFT = "(steps - step) / (steps - warmup)"
NUMBERS = "momentum_numbers(settings)"
ROOT = "xp.sqrt(v, out=scratch)\n    scratch += eps"

MISTAKES = [
    # Initial values
    ("weights drawn in PyTorch's order",
     wrap(vectors, "draw", lambda f: lambda seed, shape: f(seed, shape[::-1]).T)),
    ("fan_in and fan_out exchanged",
     wrap(resolve, "fans", lambda f: lambda shape: f(shape)[::-1])),
    ("the base's hidden init from fan_out", value(scaling.BASE_INIT, hidden=PER_ROOT_OUT)),
    ("hidden init the same at all widths", rule("mup", "hidden", init=ONE)),
    ("readout init 1 taken as an absolute 1", value(scaling.BASE_INIT, output=ONE)),
    ("readout init as in SP", rule("mup", "output", init=PER_ROOT_IN)),
    ("tied matrix starts at 1", value(scaling.BASE_INIT, tied=ONE)),
    ("variance for standard deviation", rows(lambda row, _: row._replace(std=row.std**2))),
    ("init_scale missing", rows(lambda row, hyper: row._replace(std=row.std / hyper.init_scale))),
    ("gains start at 0", specs(lambda spec: spec._replace(mean=0))),
    ("gains start at 1 in Table 9 too", rows(lambda row, _: row._replace(mean=row.spec.mean))),

    # Multipliers
    ("embed_mult missing", rows(lambda row, hyper: row._replace(
        mult=row.mult / (hyper.embed_mult if row.role == "embedding" else 1)))),
    ("output_mult missing", rows(lambda row, hyper: row._replace(
        mult=row.mult / (hyper.output_mult if row.role == "output" else 1)))),
    ("readout multiplier missing", rule("mup", "output", mult=ONE)),
    ("readout multiplier twice", rule("mup", "output", mult=Power(fan_in=-2))),
    ("readout multiplier 1/√fan_in", rule("mup", "output", mult=PER_ROOT_IN)),
    ("readout multiplier of the absolute width", rows(lambda row, hyper: row._replace(
        mult=hyper.output_mult / row.shape[0] if row.role == "output" else row.mult))),
    ("NTK's hidden multiplier missing", rule("ntk", "hidden", mult=ONE)),
    ("Table 9's embedding multiplier missing", rule("mup-table9", "embedding", mult=ONE)),
    ("tied lookup without the root of the base width", rows(lambda row, hyper: row._replace(
        mult=hyper.embed_mult if row.role == "tied" else row.mult))),
    ("tied readout without its multiplier",
     wrap(network, "tied_readout_mult", lambda f: lambda spec, param: 1.0)),
    ("tied readout with the lookup's multiplier", exact(lambda s, *_: s._replace(
        mult=s.mult | ({} if "output.bias" in s.mult else {"output": s.mult["embedding"]})))),
    ("bias inside the multiplier", exact(lambda s, *_: s._replace(mult=s.mult | {
        name: s.mult[name.removesuffix(".bias")] for name in s.mult if name.endswith(".bias")}))),
    ("multiplier missing in the weight's gradient",
     wrap(ops, "linear_backward", lambda f: lambda dy, cache: f(
         dy, (*cache[:2], cache[2]._replace(dw=1.0))))),
    ("attention scale 1/√d in μP", table("mup", attention=PER_ROOT_IN)),
    ("attention scale 1/d without the base's √d", exact(lambda s, rows, a, base, hyper: s._replace(
        attention=s.attention / base.head_dim**0.5 if hasattr(base, "head_dim") else 1.0))),
    ("attention scale missing", exact(lambda s, *_: s._replace(attention=1.0))),
    ("attention scale on q and on k", exact(lambda s, *_: s._replace(attention=s.attention**2))),
    ("attn_mult missing", exact(lambda s, rows, a, base, hyper: s._replace(
        attention=s.attention / hyper.attn_mult))),
    ("branch weight missing", branches(amount=1.0, enter=1.0)),
    ("branch weight squared",
     wrap(network, "branch_weight", lambda f: lambda *args: f(*args)**2)),
    ("branch weight of the absolute depth",
     wrap(network, "branch_weight", lambda f: lambda rule, ratio: f(rule, ratio * BASE_DEPTH))),
    ("branch weight on the FFN only", exact(lambda s, *_: s._replace(branches=tuple(
        b if i % 2 else ops.Branch(1, 1, 1, 1) for i, b in enumerate(s.branches))))),
    ("branch weight missing in the gradient", branches(enter=1.0)),

    # The network
    ("RMSNorm with ε = 1e-5", wrap(ops, "rmsnorm", lambda f: lambda x, eps: f(x, 1e-5))),
    ("RMSNorm with ε outside the root", wrap(ops, "rmsnorm", lambda f: lambda x, eps: (
        x / ((x * x).mean(-1, keepdims=True)**0.5 + eps), f(x, eps)[1]))),
    ("LayerNorm for RMSNorm",
     wrap(ops, "rmsnorm", lambda f: lambda x, eps: f(x - x.mean(-1, keepdims=True), eps))),
    ("no final norm", wrap(transformer, "norm", lambda f: lambda x, p, name, *args: (
        x if name == "final_norm" else f(x, p, name, *args)[0], f(x, p, name, *args)[1]))),
    ("gains around the norm's 1, as 1 + w", wrap(ops, "gain", lambda f: lambda x, w, mult: f(
        x, 1 + w, mult))),
    ("RoPE of interleaved pairs", wrap(ops, "rope", interleaved)),
    ("RoPE in the other direction",
     wrap(ops, "rope_angles", lambda f: lambda *args: [f(*args)[i] for i in (0, 2, 1)])),
    ("RoPE with base 500,000",
     wrap(ops, "rope_angles", lambda f: lambda *args: f(*args[:-1], 500000))),
    ("RoPE with frequencies base^(−i/D)",
     wrap(ops, "rope_angles", lambda f: lambda *args: f(*args[:-1], args[-1]**0.5))),
    ("RoPE on the values too", wrap(ops, "attention", lambda f: lambda q, k, v, scale, mult: f(
        q, k, ops.rope(v, ops.rope_angles(*v.shape[1:], v.dtype, 10000))[0], scale, mult))),
    ("no RoPE", wrap(ops, "rope", lambda f: lambda x, angles: (x, angles))),
    ("heads as columns h, h + H, …", heads(by_columns)),
    ("mask off by one",
     wrap(ops, "causal_mask", lambda f: lambda time, dtype: np.tril(f(time, dtype), -2))),
    ("no mask",
     wrap(ops, "causal_mask", lambda f: lambda time, dtype: np.zeros((time, time), dtype))),
    ("GELU with erf for tanh",
     gelu_with(lambda z: 0.5 + 0.5 * np.vectorize(math.erf)(z / 2**0.5))),
    ("GELU as x σ(1.702 x)", gelu_with(lambda z: 1 / (1 + np.exp(-1.702 * z)))),
    ("SwiGLU with gate and up exchanged",
     wrap(ops, "silu_gate", lambda f: lambda x, gate, *args: f(gate, x, *args))),
    ("SwiGLU with a sigmoid for the silu", wrap(ops, "silu_gate", lambda f: lambda x, gate, *args: (
        f(x, gate, *args)[0] / gate, f(x, gate, *args)[1]))),
    ("SwiGLU's width rounded up", wrap(transformer, "ffn_width", lambda f: lambda a: (
        -(-8 * a.width // 24) * 8 if a.ffn == "swiglu" else f(a)))),
    ("MLP that sees its tokens in reverse",
     edit(mlp.forward, "xp.arange(a.context)", "xp.arange(a.context)[::-1]")),
    ("MLP with the zeros behind the tokens",
     edit(mlp.forward, "[xp.zeros((batch, a.context - 1), ids.dtype), ids]",
          "[ids, xp.zeros((batch, a.context - 1), ids.dtype)]")),
    ("targets not shifted", edit(RUN, "batch[:, 1:]", "batch[:, :-1]")),
    ("loss a sum, not a mean", wrap(ops, "cross_entropy", lambda f: lambda logits, targets, *args: (
        (loss := f(logits, targets, *args))[0] * len(targets),
        (*loss[1][:2], loss[1][2] * len(targets))))),
    ("loss in bits", wrap(ops, "cross_entropy", lambda f: lambda *args: (
        (loss := f(*args))[0] / math.log(2), (*loss[1][:2], loss[1][2] / math.log(2))))),
    ("tied matrix without the readout's gradient",
     edit(transformer.backward, "+= grads.pop", "+= 0 * grads.pop")),

    # Roles, sizes, learning rates
    ("hidden biases as scalars", specs(lambda spec: spec._replace(
        role="scalar" if spec.name.endswith(".bias") else spec.role))),
    ("gains as scalars", specs(lambda spec: spec._replace(
        role="scalar" if spec.mean else spec.role))),
    ("MLP's embedding as a readout", specs(lambda spec: spec._replace(
        role="output" if spec.name == "embedding" else spec.role), mlp)),
    ("absolute sizes for ratios", wrap(resolve, "size_of", lambda f: lambda spec, table, *ratio: (
        Size(*resolve.fans(spec.shape), f(spec, table, *ratio).depth)))),
    ("absolute depth for its ratio",
     wrap(network, "resolve", lambda f: lambda specs, hyper, ratio: f(
         specs, hyper, ratio * BASE_DEPTH))),
    ("depth rule outside the branches too", specs(lambda spec: spec._replace(in_branch=True))),
    ("depth rule not for gains", specs(lambda spec: spec._replace(
        in_branch=spec.in_branch and not spec.mean))),
    ("depth rule not for biases", specs(lambda spec: spec._replace(
        in_branch=spec.in_branch and not spec.name.endswith(".bias")))),
    ("Depth-μP without its AdamW lr", rate("depth", "depth-mup", adamw=ONE)),
    ("depth rule without its Muon lr", attribute(scaling.DepthRule, "muon", ONE)),
    ("depth rule without its ε", attribute(scaling.DepthRule, "eps", ONE)),
    ("CompleteP with Depth-μP's AdamW lr", rate("depth", "completep", adamw=Power(depth=-1/2))),
    ("CompleteP without its SGD lr", rate("depth", "completep", sgd=ONE)),
    ("hidden AdamW lr the same at all widths", rate("mup", "hidden", adamw=ONE)),
    ("hidden AdamW lr 1/fan_out", rate("mup", "hidden", adamw=PER_OUT)),
    ("hidden AdamW lr 1/√fan_in", rate("mup", "hidden", adamw=PER_ROOT_IN)),
    ("readout AdamW lr 1/fan_in", rate("mup", "output", adamw=PER_IN)),
    ("embedding AdamW lr 1/width", rate("mup", "embedding", adamw=PER_OUT)),
    ("vector AdamW lr 1/width", rate("mup", "vector", adamw=PER_OUT)),
    ("input AdamW lr 1/width", rate("mup", "input", adamw=PER_OUT)),
    ("hidden SGD lr without fan_out/fan_in", rate("mup", "hidden", sgd=ONE)),
    ("vector SGD lr without fan_out", rate("mup", "vector", sgd=ONE)),
    ("embedding SGD lr without fan_out", rate("mup", "embedding", sgd=ONE)),
    ("readout SGD lr without fan_in", rate("mup", "output", sgd=ONE)),
    ("input SGD lr without fan_out", rate("mup", "input", sgd=ONE)),
    ("NTK's hidden AdamW lr 1/fan_in", rate("ntk", "hidden", adamw=PER_IN)),

    # AdamW and weight decay
    ("ε the same at all widths", attribute(Rule, "eps", ONE)),
    ("ε scaled like the learning rate", attribute(Rule, "eps", property(lambda self: self.adamw))),
    ("ε inside the root", edit(optim.adamw, ROOT, "xp.add(v, eps, out=scratch)\n"
                                                  "    xp.sqrt(scratch, out=scratch)")),
    ("ε² inside the root", edit(optim.adamw, ROOT, "xp.add(v, eps**2, out=scratch)\n"
                                                   "    xp.sqrt(scratch, out=scratch)")),
    ("ε before the bias correction", wrap(optim, "bias_corrected", lambda f: lambda lr, eps, *args:
     (f(lr, eps, *args)[0], eps))),
    ("no bias correction",
     wrap(optim, "bias_corrected", lambda f: lambda lr, eps, betas, t: (lr, eps))),
    ("bias correction off by one",
     wrap(optim, "bias_corrected", lambda f: lambda *args: f(*args[:-1], args[-1] + 1))),
    ("β₁ and β₂ exchanged",
     wrap(optim, "adamw", lambda f: lambda *args, share1, share2, **numbers: f(
         *args, share1=share2, share2=share1, **numbers))),
    ("v without the square root", edit(optim.adamw, "xp.sqrt(v, out=scratch)", "scratch[...] = v")),
    ("decay as L2 in the gradient", edit(STEP, SHRINK, "grads[row.name] += row.shrink * w")),
    ("decay after the update",
     edit(STEP, SHRINK, "pass"), wrap(optim.Optimizer, "step", decay_after)),
    ("decay without the schedule", edit(STEP, SHRINK, "w *= 1 - row.shrink")),
    ("decay times lr where independent", rows(lambda row, hyper: row._replace(
        shrink=row.weight_decay * row.lr))),
    ("decay without lr where coupled", rows(lambda row, hyper: row._replace(
        shrink=hyper.weight_decay))),
    ("coupled decay with the same λ at all widths", rows(lambda row, hyper: row._replace(
        shrink=hyper.weight_decay * (row.lr if hyper.decay_form == "coupled" else 1)))),
    ("no decay of biases and gains", rows(lambda row, _: row._replace(
        shrink=row.shrink if len(row.shape) > 1 else 0.0))),

    # SGD, schedule, clipping
    ("SGD without Nesterov", wrap(optim, "sgd", lambda f: lambda *args: f(
        *args[:-1], args[-1]._replace(nesterov=False)))),
    ("SGD's momentum an average", edit(optim.sgd, '"sum"', '"ema"')),
    ("SGD's Nesterov step g + m", wrap(optim, "momentum", lambda f: lambda *args, **numbers: f(
        *args, **numbers | {"of_m": 1.0}))),
    ("no momentum", wrap(optim, "momentum", lambda f: lambda *args, **numbers: f(
        *args, **numbers | {"mu": 0.0}))),
    ("schedule off by one", wrap(optim, "schedule", lambda f: lambda kind, step, steps, warmup: f(
        kind, step + 1, steps, warmup))),
    ("warm-up from 0", edit(optim.schedule, "(step + 1) / warmup", "step / warmup")),
    ("warm-up one step too long",
     edit(optim.schedule, "(step + 1) / warmup", "(step + 1) / (warmup + 1)")),
    ("linear decay counted from step 0", edit(optim.schedule, LEFT, "(steps - step) / steps")),
    ("linear decay that ends at 0",
     edit(optim.schedule, LEFT, "(steps - 1 - step) / (steps - 1 - warmup)")),
    ("cosine for linear", wrap(optim, "schedule", lambda f: lambda kind, *args: f(
        "cosine" if kind == "linear" else kind, *args))),
    ("linear for cosine", wrap(optim, "schedule", lambda f: lambda kind, *args: f(
        "linear" if kind == "cosine" else kind, *args))),
    ("WSD's decay over a tenth of the steps", edit(optim.schedule, "left / 0.2", "left / 0.1")),
    ("no clipping", wrap(optim, "clip", lambda f: lambda grads, rows, most: None)),
    ("clipping of g, with 1e-6, as in PyTorch",
     edit(optim.clip, "row.mult**-2", "1.0", "xp.sqrt(squares)", "(xp.sqrt(squares) + 1e-6)")),
    ("clipping of each gradient alone",
     edit(optim.clip, "g *= factor", "g *= xp.minimum(1.0, most / xp.sqrt((g * g).sum()))")),

    # Muon
    ("Muon without Nesterov",
     edit(optim.muon, NUMBERS, "momentum_numbers(settings._replace(nesterov=False))")),
    ("Muon with Nesterov where it is off",
     edit(optim.muon, NUMBERS, "momentum_numbers(settings._replace(nesterov=True))")),
    ("Muon's Nesterov step (1 − μ) g + μ m with m a sum",
     edit(optim.muon, NUMBERS, "momentum_numbers(settings) | {'share': 1.0, "
                               "'of_g': 1 - settings.momentum if settings.nesterov else 0.0}")),
    ("momentum kept in bf16", wrap(optim, "momentum", in_bf16)),
    ("Newton–Schulz of a bf16 momentum", wrap(optim, "newton_schulz", lambda f: lambda x, *args: f(
        quantize(x, FORMATS["bf16"]), *args))),
    ("4 Newton–Schulz steps", wrap(optim, "newton_schulz", lambda f: lambda x, steps, *args: f(
        x, 4, *args))),
    ("Newton–Schulz with b and c exchanged",
     wrap(orthogonalize, "triples_of", lambda f: lambda *args: [
         (a, c, b) for a, b, c in f(*args)])),
    ("Newton–Schulz's polynomials in reverse",
     wrap(orthogonalize, "triples_of", lambda f: lambda *args: f(*args)[::-1])),
    ("Newton–Schulz with another set's coefficients",
     wrap(optim, "newton_schulz", lambda f: lambda x, steps, _: f(
         x, steps, orthogonalize.COEFFICIENTS["quintic-convergent"]))),
    ("Polar Express without its safety factor", edit(NEWTON, "coefficients.safety * ", "")),
    ("Newton–Schulz without the division", edit(NEWTON, "xp.maximum(norm, 1e-15)", "1.0")),
    ("Newton–Schulz with 1e-7 added to the norm",
     edit(NEWTON, "xp.maximum(norm, 1e-15)", "(norm + 1e-7)")),
    ("Muon on the readout too", rows(lambda row, hyper: row._replace(
        optimizer=hyper.optimizer if row.role == "output" else row.optimizer))),
    ("Muon on the embedding too", rows(lambda row, hyper: row._replace(
        optimizer=hyper.optimizer if row.role == "embedding" else row.optimizer))),
    ("AdamW's parameters with Muon's lr", rows(lambda row, hyper: row._replace(
        lr=row.lr * hyper.lr / hyper.adam_lr if hyper.adam_lr and row.optimizer == "adamw"
        else row.lr))),
    ("spectral factor with exchanged fans",
     value(SHAPE_FACTORS, spectral=lambda fan_in, fan_out: math.sqrt(fan_in / fan_out))),
    ("shape factor missing", rows(lambda row, _: row._replace(shape_factor=1.0))),
    ("shape factor of the base missing",
     wrap(resolve, "muon_numbers", lambda f: lambda spec, table, hyper: (
         f(spec, table, hyper)[0] / SHAPE_FACTORS[hyper.muon_scale](*spec.base_shape),
         *f(spec, table, hyper)[1:]))),
    ("shape factor alone, without the table's cell",
     wrap(resolve, "muon_numbers", lambda f: lambda *args: (1.0, *f(*args)[1:]))),
    ("Moonlight's factor without its 0.2",
     value(SHAPE_FACTORS, moonlight=lambda fan_in, fan_out: math.sqrt(max(fan_in, fan_out)))),
    ("Keller's factor without its maximum",
     value(SHAPE_FACTORS, keller=lambda fan_in, fan_out: math.sqrt(fan_out / fan_in))),
    ("no split into heads", rows(lambda row, _: row._replace(heads=1))),
    ("heads split along the rows",
     edit(optim.muon, "u.reshape(count, fan_in, heads, -1).swapaxes(1, 2)",
          "u.reshape(count, heads, -1, fan_out)")),
    ("heads with the whole matrix's shape factor",
     wrap(resolve, "muon_numbers", lambda f: lambda spec, table, hyper: (
         *f(spec, table, hyper._replace(muon_per_head=False))[:2], f(spec, table, hyper)[2]))),
    ("QK-Clip of the queries only", specs(lambda spec: spec._replace(
        logits=spec.logits if "query" in spec.name else None))),
    ("QK-Clip without the root", edit(optim.qk_clip, "xp.sqrt(threshold", "(threshold")),
    ("QK-Clip by absolute logits",
     wrap(ops, "largest_by_head", lambda f: lambda cache: (
         abs(ops.attention_logits(cache)) * (cache[3] > 0)).max((0, 2, 3)))),
    ("QK-Clip by logits behind the mask", wrap(ops, "largest_by_head", lambda f: lambda cache: (
        ops.attention_logits(cache).max((0, 2, 3))))),
    ("QK-Clip of all heads alike",
     wrap(ops, "largest_by_head", lambda f: lambda cache: f(cache) * 0 + f(cache).max())),
    ("QK-Clip not of biases", specs(lambda spec: spec._replace(
        logits=spec.logits if len(spec.shape) > 1 else None))),
    ("QK-Clip before the update",
     edit(RUN, "optimizer.step(params, grads, step, factor)",
          'config.optimizer == "muonclip" and optim.qk_clip(params, network.rows, largest, '
          "config.qk_clip_threshold)\n        optimizer.step(params, grads, step, factor)",
          'if config.optimizer == "muonclip":', "if False:")),

    # u-μP
    ("u-μP: hidden multiplier missing", rule("umup", "hidden", mult=ONE)),
    ("u-μP: readout multiplier 1/√fan_in", rule("umup", "output", mult=PER_ROOT_IN)),
    ("u-μP: dx by the chain rule in the FFN", specs(lambda spec: spec._replace(constrained=True))),
    ("u-μP: constrained and unconstrained exchanged",
     specs(lambda spec: spec._replace(constrained=not spec.constrained))),
    ("u-μP: dw without 1/√N", unit(lambda s, hyper: s._replace(mult={
        name: m._replace(dw=1.0) if m.dx else m for name, m in s.mult.items()}))),
    ("u-μP: N of sequences, not tokens",
     wrap(unit_scaling, "parameter_mult", lambda f: lambda row, tokens: f(row, tokens // 7))),
    ("u-μP: readout dx 1/√fan_in", wrap(unit_scaling, "readout_factors", lambda f: lambda i, o, n: (
        1 / i, i**-0.5, n**-0.5))),
    ("u-μP: readout dx by the chain rule",
     wrap(unit_scaling, "readout_factors", lambda f: lambda i, o, n: (1 / i, 1 / i, n**-0.5))),
    ("u-μP: lookup's dw missing", attribute(unit_scaling, "lookup_factor", lambda *_: 1.0)),
    ("u-μP: gains' dw missing", attribute(unit_scaling, "gain_factor", lambda *_: 1.0)),
    ("u-μP: SwiGLU's factor missing",
     value(unit_scaling.ACTIVATION_FACTORS, swiglu=lambda alpha: 1.0)),
    ("u-μP: GELU's factor missing", value(unit_scaling.ACTIVATION_FACTORS, gelu=lambda alpha: 1.0)),
    ("u-μP: activation's factor at α = 1", value(
        unit_scaling.ACTIVATION_FACTORS, swiglu=lambda alpha: unit_scaling.silu_gate_factor(),
        gelu=lambda alpha: unit_scaling.gelu_factor())),
    ("u-μP: attention's factor missing", unit(lambda s, _: s._replace(attention_out=1.0))),
    ("u-μP: attention's factor without a mask",
     wrap(unit_scaling, "attention_factor", lambda f: lambda *args: f(*args, causal=False))),
    ("u-μP: attention scale 1/√d", table("umup", attention=PER_ROOT_IN)),
    ("u-μP: α_attn missing", unit(lambda s, hyper: s._replace(
        attention=s.attention / hyper.alpha_attn))),
    ("u-μP: α_ffn missing", unit(lambda s, _: s._replace(activation_alpha=1.0))),
    ("u-μP: τ without recursion", edit(unit_scaling.branch_factors, "stream += branch", "pass")),
    ("u-μP: α_res_ratio inverted",
     wrap(unit_scaling, "branch_factors", lambda f: lambda depth, a, r: f(depth, a, 1 / r))),
    ("u-μP: α_res missing",
     wrap(unit_scaling, "branch_factors", lambda f: lambda depth, a, r: f(depth, 1.0, r))),
    ("u-μP: stream not scaled down", unit(lambda s, _: s._replace(
        branches=tuple(b._replace(skip=1.0) for b in s.branches)))),
    ("u-μP: branch gradients scaled on entry", unit(lambda s, _: s._replace(
        branches=tuple(b._replace(enter=b.leave, leave=b.enter) for b in s.branches)))),
    ("u-μP: α_loss missing", unit(lambda s, _: s._replace(logits=1.0))),
    ("u-μP: α_loss in the gradient", unit(lambda s, hyper: s._replace(
        dlogits=s.dlogits * hyper.alpha_loss))),
    ("u-μP: the loss's gradient without V/√(V−1)", unit(lambda s, _: s._replace(dlogits=1.0))),
    ("u-μP: the loss's gradient with 1/N", unit(lambda s, hyper: s._replace(
        dlogits=s.dlogits / (hyper.batch * hyper.seq)))),
    ("u-μP: embedding lr without 1/√width", rate("umup", "embedding", adamw=ONE)),
    ("u-μP: hidden lr without 1/√fan_in", rate("umup", "hidden", adamw=ONE)),
    ("u-μP: readout lr with 1/√fan_in", rate("umup", "output", adamw=PER_ROOT_IN)),
    ("u-μP: hidden SGD lr the same at all widths", rate("umup", "hidden", sgd=ONE)),
    ("u-μP: lr in branches without 1/√L",
     attribute(resolve, "U_MUP_DEPTH", scaling.DEPTH_RULES["none"])),
    ("u-μP: Muon step without the multiplier's inverse",
     attribute(Rule, "muon", Power(fan_in=-1/2, fan_out=1/2))),
]


@cache
def references():
    """name → (the case, each of its quantities' differences in single precision)."""
    found = {}
    for name, config in vectors.CASES.items():
        config = complete(config)
        case = vectors.run(config)
        found[name] = case, differences(case, vectors.run(replace(config, dtype="float32")))
    return found


def differences(case, mine):
    """(section, name) → the relative difference, infinite for a NaN or another shape."""
    def relative(a, b):
        if isinstance(a, dict) and a["shape"] != b["shape"]:
            return math.inf
        d = float(difference(a, b))
        return math.inf if math.isnan(d) else d
    shared = {section: {name: q for name, q in value.items() if name in case[section]}
              if isinstance(value, dict) else value for section, value in mine.items()}
    return {(section, name): relative(a, b) for section, name, a, b in common(case, shared)}


def noticed(makers, name):
    """The first quantity of a case that shows a mistake: its name, difference and that of float32,
    and the largest difference of any quantity. None if the case does not notice the mistake."""
    case, noise = references()[name]
    with made(makers), np.errstate(all="ignore"):                 # some mistakes diverge
        mine = vectors.run(complete(vectors.CASES[name]))
    found = {key: d for key, d in differences(case, mine).items()
             if d >= max(LEAST, ABOVE_NOISE * noise[key])}
    for key, d in found.items():
        return " ".join(key).strip(), d, noise[key], max(found.values())
    return None


def records():
    """A record per mistake: the first case that notices it and by what, and how many cases do."""
    for name, *makers in MISTAKES:
        seen = {case: found for case in vectors.CASES if (found := noticed(makers, case))}
        case, (quantity, d, noise, most) = next(iter(seen.items()), ("none", ("", 0.0, 0.0, 0.0)))
        yield {"mistake": name, "case": case, "quantity": quantity, "difference": f"{d:.2e}",
               "float32": f"{noise:.0e}", "largest": f"{most:.2e}", "cases": len(seen)}


def main():
    """Prints the table and writes it."""
    found = []
    for record in records():
        found.append(record)
        print("  ".join(f"{cell!s:{width}}" for cell, width
                        in zip(record.values(), (52, 35, 38, 9, 6, 9, 2))), flush=True)
    with open(RESULTS, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, found[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


if __name__ == "__main__":
    main()
