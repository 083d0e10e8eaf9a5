"""The Muon packages of conformance.py. Each is imported in the function that measures it.

PyTorch stores a dense weight as (fan_out, fan_in), so `trained` transposes it, and the shape factor
that PyTorch's packages take from size(0)/size(1) is the one of fan_out/fan_in.
"""
from contextlib import contextmanager
from functools import partial
from unittest import mock

import numpy as np
from conformance import (
    BETAS, DECAY, EPS, LR, MATRICES, MOMENTUM, MUON_RULES, NETWORK, NUMBERS, STEPS, VECTOR,
    adamw_rules, compared, draw, louder, only, sgd_rules, unmapped, valued)

from tinymup.optim import qk_clip
from tinymup.resolve import Hyperparameters, Spec, resolve
from tinymup.scaling import SHAPE_FACTORS

COMPANION = adamw_rules(["sp"])      # of what Muon leaves to AdamW
CAST = "torch.Tensor.bfloat16 = torch.Tensor.clone"
HOOK = "each group's λ set to 0 once built; p *= 1 − lr·λ in register_step_pre_hook"
C_OF = "c = √min(1, fan_out/fan_in)"


# PyTorch

def stored(spec, array):
    """A weight as PyTorch stores it, and back."""
    return array.T if len(spec.shape) == 2 and spec.role != "embedding" else array


def trained(make, problem, named=None):
    """Final weights by name. make: {name: parameter} → optimizer; named: parameters of a module."""
    import torch
    named = named or {spec.name: torch.nn.Parameter(
        torch.zeros(stored(spec, np.empty(spec.shape)).shape, dtype=torch.float64))
        for spec in problem.specs}
    for spec in problem.specs:
        named[spec.name].data.copy_(torch.tensor(stored(spec, problem.start[spec.name])))
    optimizer = make(named)
    for t in range(STEPS):
        for spec in problem.specs:
            g = stored(spec, problem.grads[spec.name][t])
            named[spec.name].grad = torch.tensor(np.ascontiguousarray(g))
        optimizer.step()
    return {spec.name: stored(spec, named[spec.name].detach().numpy()) for spec in problem.specs}


def torch_run(optimizer, **options):
    """A run of an optimizer of PyTorch's kind on all parameters."""
    return partial(trained, lambda named: optimizer(list(named.values()), **options))


def grouped(optimizer, groups, **options):
    """A run with a group per parameter. groups: name → options"""
    return partial(trained, lambda named: optimizer(
        [{"params": [p], **groups[name]} for name, p in named.items()], **options))


def decoupled(optimizer):
    """Takes weight decay out of the gradient and applies it in a hook before the step."""
    def decay(optimizer, *_):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.data.mul_(1 - group["lr"] * group["decay"])

    for group in optimizer.param_groups:
        group["decay"], group["weight_decay"] = group["weight_decay"], 0
    optimizer.register_step_pre_hook(decay)
    return optimizer


def without_cast(run, problem):
    """A run in which Newton–Schulz stays in the dtype of the gradient."""
    import torch
    with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
        return run(problem)


def per_matrix(run, problem):
    """A run for each matrix. run(problem, spec)"""
    return {spec.name: run(only(problem, spec), spec)[spec.name] for spec in problem.specs}


MUON = dict(lr=LR, weight_decay=DECAY, momentum=MOMENTUM)


def torch_lines():
    """torch.optim: Muon, AdamW, SGD."""
    import torch
    muon = partial(torch_run, torch.optim.Muon, **MUON)
    matching = muon(adjust_lr_fn="match_rms_adamw")
    note = "Newton–Schulz in bfloat16"
    yield compared("Muon", note, MATRICES, MUON_RULES, muon(), CAST, partial(without_cast, muon()))
    yield compared("Muon, adjust_lr_fn='match_rms_adamw'", note, MATRICES, MUON_RULES, matching,
                   CAST, partial(without_cast, matching))
    c = {spec.name: min(1, spec.shape[1] / spec.shape[0])**0.5 for spec in MATRICES.specs}
    spectral = grouped(torch.optim.Muon, {
        name: {"lr": LR * c[name], "weight_decay": DECAY / c[name]} for name in c},
        momentum=MOMENTUM)
    yield compared("Muon as spectral", note, MATRICES, MUON_RULES, muon(),
                   f"{CAST}; a group per shape with lr·c and λ/c, {C_OF}",
                   partial(without_cast, spectral))

    adamw = torch_run(torch.optim.AdamW, lr=LR, weight_decay=DECAY, betas=BETAS, eps=EPS)
    yield compared("AdamW", "", NETWORK, adamw_rules(), adamw)
    rows = resolve(NETWORK.specs, Hyperparameters(param="mup", optimizer="adamw",
                                                  decay_form="coupled", **NUMBERS))
    groups = {row.name: {"lr": row.lr, "eps": row.eps, "weight_decay": row.weight_decay}
              for row in rows}
    yield compared("AdamW as μP", "one lr, ε and λ for all", NETWORK, adamw_rules(), adamw,
                   "a group per parameter with lr, eps and weight_decay of its row",
                   grouped(torch.optim.AdamW, groups, betas=BETAS))
    sgd = partial(torch.optim.SGD, lr=LR, weight_decay=DECAY, momentum=MOMENTUM)
    for nesterov in (False, True):
        yield compared(f"SGD, nesterov={nesterov}", "decay in the gradient (L2)", NETWORK,
                       sgd_rules(), torch_run(sgd, nesterov=nesterov), HOOK,
                       partial(trained, lambda named, nesterov=nesterov: decoupled(
                           sgd(list(named.values()), nesterov=nesterov))))


def muon_optimizer_lines():
    """muon-optimizer, the package of KellerJordan/Muon."""
    import muon
    run = torch_run(muon.SingleDeviceMuon, **MUON)
    yield compared("SingleDeviceMuon", "Newton–Schulz in bfloat16, 1e-7 added to the norm",
                   MATRICES, MUON_RULES, run, f"{CAST}; gradients · 2^30",
                   lambda problem: without_cast(run, louder(problem)))
    adam = dict(use_muon=False, lr=LR, weight_decay=DECAY, betas=BETAS, eps=EPS)
    yield compared("SingleDeviceMuonWithAuxAdam, its AdamW", "", VECTOR, COMPANION,
                   partial(trained, lambda named: muon.SingleDeviceMuonWithAuxAdam(
                       [{"params": list(named.values()), **adam}])))
    yield unmapped("SingleDeviceMuon, nesterov", "always True; the optimizer has no option")
    yield unmapped("SingleDeviceMuon, kernels (fan_out, fan_in, 3, 3)",
                   "its step has shape (fan_out, 9·fan_in) and raises RuntimeError")


def pytorch_optimizer_lines():
    """pytorch_optimizer: Muon, MuonClip."""
    import pytorch_optimizer
    import torch
    from pytorch_optimizer.optimizer.muon import base

    def run(optimizer, problem, **options):
        return trained(lambda named: optimizer(
            [{"params": list(named.values()), "use_muon": True}], **MUON | options), problem)

    def exact(run, problem):
        with mock.patch.object(base, name, partial(getattr(base, name), dtype=torch.float64)):
            return run(problem)

    name = "zero_power_via_newton_schulz_5"
    line, note = f"base.{name} = partial({name}, dtype=torch.float64)", "Newton–Schulz in bfloat16"
    for title, optimizer, options in (
            ("Muon", pytorch_optimizer.Muon, {}),
            ("Muon, use_adjusted_lr=True", pytorch_optimizer.Muon, {"use_adjusted_lr": True}),
            ("Muon, ns_coeffs='quintic'", pytorch_optimizer.Muon, {"ns_coeffs": "quintic"}),
            ("MuonClip, no QK-Clip", pytorch_optimizer.MuonClip, {})):
        trains = partial(run, optimizer, **options)
        yield compared(title, note, MATRICES, MUON_RULES, trains, line, partial(exact, trains))
    yield valued("MuonClip, QK-Clip", "optim.qk_clip; γ in float32", clip_difference())
    polar = partial(run, pytorch_optimizer.Muon, ns_coeffs="polar_express")
    yield compared("Muon, ns_coeffs='polar_express'", note, MATRICES, MUON_RULES, polar, line,
                   partial(exact, polar),
                   "not mapped: five other triples, made with cushion 0.02, and no safety on ‖g‖")
    gram = partial(run, pytorch_optimizer.Muon, ns_method="gram_newton_schulz")
    yield compared("Muon, ns_method='gram_newton_schulz'", "Newton–Schulz in float16", MATRICES,
                   MUON_RULES, gram, why="not mapped: float16 is fixed in it")
    yield compared("Muon, its AdamW", "", VECTOR, COMPANION, partial(
        trained, lambda named: pytorch_optimizer.Muon(
            [{"params": list(named.values()), "use_muon": False}], adamw_lr=LR, adamw_wd=DECAY,
            adamw_betas=BETAS, adamw_eps=EPS)))


def clip_difference():
    """MuonClip's queries after QK-Clip alone (lr 0) against tinymup's. √γ is a binary fraction."""
    import pytorch_optimizer
    import torch
    w, largest, threshold = draw(1, (8, 12)), np.array([0.5, 4.0, 16.0]), 1.0
    p = torch.nn.Parameter(torch.tensor(w.T.copy()))
    p.grad = torch.zeros_like(p)
    optimizer = pytorch_optimizer.MuonClip(
        [{"params": [p], "use_muon": True, "attention_name": "logits", "qk_clip": "query"}],
        lr=0.0, qk_clip_threshold=threshold)
    optimizer.step(attention_max_logits={"logits": torch.tensor(largest)})
    ours = {"query": w.copy()}
    spec = Spec("query", "hidden", w.shape, head_dim=4, logits="logits")
    qk_clip(ours, resolve([spec]), {"logits": largest}, threshold)
    return float(abs(p.detach().numpy().T - ours["query"]).max() / abs(ours["query"]).max())


def heavyball_lines():
    """heavyball: Muon, MuonAdamW, MuonLaProp."""
    import heavyball
    heavyball.utils.compile_mode = None    # the same numbers without minutes of compilation
    options = dict(lr=LR, weight_decay=DECAY, betas=(MOMENTUM, BETAS[1]))
    exact = dict(heavyball_momentum=True, storage_dtype="float64")
    muon = torch_run(heavyball.Muon, **options)
    yield compared("Muon", "direction g + ema, kept in float32", MATRICES, MUON_RULES, muon,
                   "heavyball_momentum=True, storage_dtype='float64'",
                   torch_run(heavyball.Muon, **options, **exact))
    yield compared("Muon, nesterov=False", "bias-corrected ema, kept in float32", MATRICES,
                   MUON_RULES, torch_run(heavyball.Muon, nesterov=False, **options),
                   "heavyball_momentum=True, storage_dtype='float64'",
                   torch_run(heavyball.Muon, nesterov=False, **options, **exact))
    adam = dict(lr=LR, weight_decay=DECAY, betas=BETAS, eps=EPS)
    yield compared("MuonAdamW, its AdamW", "divides by max(√v̂, ε), kept in float32", VECTOR,
                   COMPANION, torch_run(heavyball.MuonAdamW, **adam),
                   "storage_dtype='float64'",
                   torch_run(heavyball.MuonAdamW, storage_dtype="float64", **adam),
                   "not mapped: max(√v̂, ε) for √v̂ + ε; equal where ε = 0")
    yield compared("MuonLaProp", "Adam's division before the orthogonalization", MATRICES,
                   MUON_RULES, torch_run(heavyball.MuonLaProp, **options),
                   why="not mapped: no second moment in our Muon")
    yield unmapped("utils.zeroth_power_mode", "legacy_newtonschulz, thinky_polar_express, svd, qr "
                   "and others; newtonschulz is compared above")


# JAX

def optax_run(optimizer, problem):
    """Final weights."""
    import jax
    import jax.numpy as jnp
    import optax
    params = {spec.name: jnp.asarray(problem.start[spec.name]) for spec in problem.specs}
    with jax.disable_jit():                # the same numbers without seconds of compilation
        state = optimizer.init(params)
        for t in range(STEPS):
            grads = {name: jnp.asarray(problem.grads[name][t]) for name in params}
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
    return {name: np.array(w) for name, w in params.items()}


def optax_lines():
    """optax.contrib.muon. Its layout is tinymup's."""
    import jax
    jax.config.update("jax_enable_x64", True)
    import optax

    def shipped(**options):
        return partial(optax_run, optax.contrib.muon(LR, weight_decay=DECAY, **options))

    def traced(**options):
        return partial(optax_run, optax.chain(
            optax.trace(MOMENTUM, nesterov=True), optax.contrib.muon(
                LR, weight_decay=DECAY, nesterov=False, beta=0.0, eps=1e-300, **options)))

    def spectral(problem, spec):
        ratio, larger = spec.shape[1] / spec.shape[0], max(spec.shape)
        return traced(consistent_rms=(ratio / larger)**0.5)(problem)

    note = "Nesterov with two bias corrections, 1e-8 added to the norm"
    line = "chain(trace(μ, nesterov=True), muon(lr, beta=0, nesterov=False, eps=1e-300))"
    for options in ({}, {"consistent_rms": 0.2}, {"ns_coeffs": "dion"}):
        words = "".join(f", {key}={value!r}" for key, value in options.items())
        yield compared("muon" + words, note, MATRICES, MUON_RULES,
                       shipped(beta=MOMENTUM, **options), line, traced(**options))
    yield compared("muon, nesterov=False", "1e-8 added to the norm", MATRICES, MUON_RULES,
                   shipped(beta=MOMENTUM, nesterov=False), "eps=1e-300",
                   shipped(beta=MOMENTUM, nesterov=False, eps=1e-300))
    yield compared("muon as spectral", note, MATRICES, MUON_RULES, shipped(beta=MOMENTUM),
                   f"{line} for each shape, consistent_rms=√(fan_out/fan_in/max(fan_in, fan_out))",
                   partial(per_matrix, spectral))
    adam = dict(adam_b1=BETAS[0], adam_b2=BETAS[1], eps=EPS, adam_weight_decay=DECAY)
    yield compared("muon, its Adam", "NAdam where nesterov=True, the default", VECTOR, COMPANION,
                   shipped(**adam), "nesterov=False", shipped(nesterov=False, **adam))
    yield compared("adamw", "", VECTOR, COMPANION, partial(
        optax_run, optax.adamw(LR, *BETAS, EPS, weight_decay=DECAY)))
    for kind in ("spectral", "aol", "schatten"):
        yield compared(f"muon, preconditioning={kind!r}", note, MATRICES, MUON_RULES,
                       shipped(beta=MOMENTUM, preconditioning=kind),
                       why="not mapped: another start of Newton–Schulz")
    yield unmapped("muon, adaptive=True", "a factor ⟨g, O⟩ on the step")


# Keras

def keras_run(optimizer, problem, before=lambda optimizer, t: None):
    """Final weights. before: called before step t = 1, 2, …"""
    import keras
    variables = [keras.Variable(problem.start[spec.name], dtype="float64", name=spec.name)
                 for spec in problem.specs]
    optimizer.build(variables)
    for t in range(STEPS):
        before(optimizer, t + 1)
        optimizer.apply([keras.ops.convert_to_tensor(problem.grads[spec.name][t], dtype="float64")
                         for spec in problem.specs], variables)
    return {spec.name: keras.ops.convert_to_numpy(v)
            for spec, v in zip(problem.specs, variables, strict=True)}


@contextmanager
def floatx(dtype):
    """Another default dtype of Keras."""
    import keras
    before = keras.config.floatx()
    keras.config.set_floatx(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(before)


def keras_lines():
    """keras.optimizers.Muon. Its layout is tinymup's."""
    import keras

    def shipped(problem, lr=LR, weight_decay=DECAY, **options):
        return keras_run(keras.optimizers.Muon(
            lr, weight_decay=weight_decay, momentum=MOMENTUM, **options), problem)

    def norm(x, axis, keepdims):
        return keras.ops.sqrt(keras.ops.sum(x * x, axis=axis, keepdims=keepdims))

    def scaled(factor, problem):
        def run(problem, spec):
            s = SHAPE_FACTORS[factor](*spec.shape)
            return shipped(problem, lr=LR * s, weight_decay=DECAY / s, rms_rate=None)
        with mock.patch.object(keras.src.ops, "norm", norm), floatx("float64"):
            return per_matrix(run, louder(problem))

    def corrected(optimizer, t):
        optimizer.epsilon = EPS * (1 - BETAS[1]**t)**0.5

    def adam(problem, **options):
        return keras_run(keras.optimizers.Muon(
            LR, adam_weight_decay=DECAY, adam_beta_1=BETAS[0], adam_beta_2=BETAS[1], epsilon=EPS),
            problem, **options)

    def exact_adam(problem):
        with floatx("float64"):
            return adam(problem, before=corrected)

    exact = "set_floatx('float64')"
    line = (f"{exact}; keras.src.ops.norm as √Σx²; gradients · 2^30; for each shape rms_rate=None, "
            "lr·s and λ/s, s = ")
    for name, factor, s in (("Muon", "moonlight", "0.2 √max(fan_in, fan_out)"),
                            ("Muon as spectral", "spectral", "√(fan_out/fan_in)")):
        yield compared(name, "‖g‖ and the factor in float32, 1e-7 added to ‖g‖", MATRICES,
                       MUON_RULES, shipped, line + s, partial(scaled, factor))
    yield compared("Muon, its AdamW", "ε added before the bias correction", VECTOR, COMPANION,
                   adam, f"{exact}; optimizer.epsilon = ε·√(1 − β₂^t) before step t", exact_adam)
    yield unmapped("Muon on kernels of rank 3 and 4", "they get its AdamW")
