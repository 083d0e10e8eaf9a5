"""mup and unit-scaling in conformance.py: their optimizers, layers and operations."""
import math
from functools import partial

import numpy as np
from conformance import (
    BASE, BETAS, DATA, DECAY, EPS, LR, MOMENTUM, NETWORK, NUMBERS, TARGET, UNIT, UNIT_DEPTH,
    UNIT_FFN, UNIT_WIDTH, VOCAB, WIDER, adamw_rules, compared, draw, sgd_rules, unmapped, valued)
from conformance_packages import HOOK, decoupled, trained

from tinymup import unit_scaling
from tinymup.resolve import Hyperparameters, resolve


# mup

def mup_network(sizes=TARGET):
    """The modules of `network_specs`."""
    import mup
    from torch import nn
    width, ffn = sizes
    return nn.ModuleDict({
        "embedding": nn.Embedding(VOCAB, width), "input": nn.Linear(DATA, width),
        "norm": nn.LayerNorm(width), "up": nn.Linear(width, ffn), "down": nn.Linear(ffn, width),
        "readout": mup.MuReadout(width, VOCAB, output_mult=3.0)}).double()


def mup_model():
    """A model of the target's sizes that knows its base shapes."""
    import mup
    import torch
    torch.manual_seed(0)
    model = mup_network()
    mup.set_base_shapes(model, mup_network(BASE), delta=mup_network(WIDER))
    return model


def mup_run(make, problem):
    """Final weights. make: {name: parameter} → optimizer"""
    return trained(make, problem, dict(mup_model().named_parameters()))


def mup_rows(optimizer="adamw"):
    """tinymup's rows of the model."""
    hyper = Hyperparameters(param="mup", optimizer=optimizer, decay_form="coupled",
                            output_mult=3.0, **NUMBERS)
    return {row.name: row for row in resolve(NETWORK.specs, hyper)}


def mup_lines():
    """mup: MuSGD, MuAdam, MuAdamW, MuReadout, initial values."""
    import mup

    def sgd(named, nesterov):
        return mup.MuSGD(list(named.values()), lr=LR, weight_decay=DECAY, momentum=MOMENTUM,
                         nesterov=nesterov)

    for nesterov in (False, True):
        yield compared(f"MuSGD, nesterov={nesterov}", "decay in the gradient (L2)", NETWORK,
                       sgd_rules(), partial(mup_run, partial(sgd, nesterov=nesterov)), HOOK,
                       partial(mup_run, lambda named, n=nesterov: decoupled(sgd(named, n))))
    rows, adam = mup_rows(), dict(lr=LR, weight_decay=DECAY, betas=BETAS)
    groups = "a group per parameter with the eps of its row"

    def with_eps(optimizer, named):
        return optimizer([{"params": [p], "eps": rows[name].eps} for name, p in named.items()],
                         **adam)

    def one_eps(optimizer, named):
        return optimizer(list(named.values()), eps=EPS, **adam)

    yield compared("MuAdamW", "one ε for all", NETWORK, adamw_rules(),
                   partial(mup_run, partial(one_eps, mup.MuAdamW)), groups,
                   partial(mup_run, partial(with_eps, mup.MuAdamW)))
    yield compared("MuAdam", "one ε for all, decay in the gradient (L2)", NETWORK, adamw_rules(),
                   partial(mup_run, partial(one_eps, mup.MuAdam)), f"{groups}; {HOOK}",
                   partial(mup_run, lambda named: decoupled(with_eps(mup.MuAdam, named))))
    yield valued("MuReadout(output_mult=3)", "A·(x w) + b with the row's A", readout_difference())
    yield valued("nn.Linear, then set_base_shapes", "initial std of the row; uniform, std "
                 "1/√(3 fan_in) in the base", init_difference(lambda w, row: None),
                 "mup.init.normal_(w, std=the base's init std)", init_difference(mup_normal),
                 "the std of a sample as shipped; entry by entry with the line")
    yield unmapped("MuSharedReadout", "its bias has the length of the width, not of the vocabulary")


def readout_difference():
    """MuReadout's output against tinymup's, relative to the largest."""
    import torch
    readout, row = mup_model()["readout"], mup_rows()["readout.weight"]
    x, w, b = draw(1, (4, TARGET[0])), *(p.detach().numpy() for p in readout.parameters())
    y, wanted = readout(torch.tensor(x)).detach().numpy(), row.mult * (x @ w.T) + b
    return float(abs(y - wanted).max() / abs(wanted).max())


def mup_normal(w, row):
    """Draws w with mup. Returns what PyTorch draws with the row's std."""
    import mup
    import torch
    base = resolve([row.spec._replace(shape=row.spec.base_shape)],
                   Hyperparameters(param="mup"))[0].std
    wanted = torch.empty_like(w)
    for draw_it in (partial(mup.init.normal_, w, std=base),
                    partial(torch.nn.init.normal_, wanted, std=row.std)):
        torch.manual_seed(1)
        draw_it()
    return wanted


def init_difference(normal):
    """The largest difference of an initial matrix from its row."""
    rows, found = mup_rows(), []
    for name, parameter in mup_model().named_parameters():
        if parameter.ndim == 2:
            wanted, w = normal(parameter, rows[name]), parameter.detach()
            found.append(abs(float(w.std()) / rows[name].std - 1) if wanted is None else
                         float(abs(w - wanted.detach()).max() / abs(wanted).max()))
    return max(found)


# unit-scaling

def unit_model():
    """The modules of `unit_specs`."""
    import unit_scaling as uu
    from torch import nn
    width, ffn = UNIT_WIDTH, UNIT_FFN
    blocks = [nn.ModuleDict({
        "norm": uu.LayerNorm(width, elementwise_affine=True),
        "up": uu.Linear(width, ffn, bias=True), "down": uu.Linear(ffn, width)})
        for _ in range(UNIT_DEPTH)]
    return nn.ModuleDict({
        "embedding": uu.Embedding(VOCAB, width), "input": uu.Linear(DATA, width),
        "blocks": uu.DepthModuleList(blocks), "readout": uu.LinearReadout(width, VOCAB)}).double()


def unit_run(make, problem, input_type="weight"):
    """Final weights. make: {name: parameter} → optimizer"""
    named = dict(unit_model().named_parameters())
    named["input.weight"].mup_type = input_type
    return trained(make, problem, named)


def unit_lines():
    """unit-scaling: optimizers and operations."""
    import unit_scaling as uu
    adam = dict(lr=LR, weight_decay=DECAY, betas=BETAS, eps=EPS)

    def adamw(named):
        return uu.optim.AdamW(list(named.values()), **adam)

    def l2_adam(named):
        return uu.optim.Adam(list(named.values()), **adam)

    def sgd(named, nesterov):
        return uu.optim.SGD(list(named.values()), lr=LR, weight_decay=DECAY, momentum=MOMENTUM,
                            nesterov=nesterov)

    line, note = "its weight.mup_type = 'output'", "lr/√fan_in for a dense first layer"
    fixed = partial(unit_run, input_type="output")
    yield compared("AdamW", note, UNIT, adamw_rules(), partial(unit_run, adamw), line,
                   partial(fixed, adamw))
    yield compared("Adam", f"{note}, decay in the gradient (L2)", UNIT, adamw_rules(),
                   partial(unit_run, l2_adam), f"{line}; {HOOK}",
                   partial(fixed, lambda named: decoupled(l2_adam(named))))
    for nesterov in (False, True):
        yield compared(f"SGD, nesterov={nesterov}", f"{note}, decay in the gradient (L2)", UNIT,
                       sgd_rules(), partial(unit_run, partial(sgd, nesterov=nesterov)),
                       f"{line}; {HOOK}",
                       partial(fixed, lambda named, n=nesterov: decoupled(sgd(named, n))))
    for name, (apart, function) in unit_operations().items():
        yield valued(name, f"unit_scaling.{function}", apart)
    yield unmapped("SGD, readout_constraint='to_output_scale'", "another column of lr; None is "
                   "compared above")
    yield unmapped("functional.rms_norm", "float32 inside, so that float64 agrees to 8e-8")
    yield unmapped("functional.scaled_dot_product_attention over one position", "a ValueError; "
                   "attention_factor takes a single value")
    yield unmapped("MHSA.linear_qkv", "queries, keys and values in one matrix (3 width, width)")


def apart(unit, plain, factors, *inputs):
    """The largest relative difference of output and gradients from the factors times plain's."""
    import torch
    results = []
    for function in (unit, plain):
        leaves = [torch.tensor(x, requires_grad=True) for x in inputs]
        y = function(*leaves)
        dy = torch.tensor(draw(99, y.shape))
        results.append([y, *torch.autograd.grad(y, leaves, dy)])
    found = [abs(a - f * b).max() / abs(a).max()
             for a, b, f in zip(*results, factors, strict=True)]
    return max(float(x.detach()) for x in found)


def unit_operations():
    """name → (difference, the function of unit_scaling.py whose factors it has)"""
    import torch
    import torch.nn.functional as F
    import unit_scaling.functional as U
    from unit_scaling.core.functional import transformer_residual_scaling_rule
    width, ffn, tokens = UNIT_WIDTH, UNIT_FFN, 24
    x, w, b = draw(1, (tokens, width)), draw(2, (ffn, width)), draw(3, (ffn,))
    x2, table = draw(4, (tokens, width)), draw(5, (VOCAB, width))
    qkv, alpha = list(draw(6, (3, 2, 4, 12, 8))), 0.5          # (batch, heads, time, head_dim)
    ids = torch.arange(tokens) * 7 % VOCAB
    hidden = unit_scaling.linear_factors(width, ffn, tokens)
    free = unit_scaling.linear_factors(width, ffn, tokens, constrained=False)
    readout = unit_scaling.readout_factors(width, ffn, tokens)
    gain = unit_scaling.gain_factor(tokens)
    gelu, silu = unit_scaling.gelu_factor(alpha), unit_scaling.silu_gate_factor(alpha)
    attention = unit_scaling.attention_factor(alpha, 8, 12)
    dlogits = unit_scaling.dlogits_factor(VOCAB) * tokens / alpha    # of the mean's gradient
    tau = transformer_residual_scaling_rule(residual_mult=0.5, residual_attn_ratio=2.0)
    weights = [(t / math.hypot(1, t), 1 / math.hypot(1, t))
               for t in (tau(i, 2 * UNIT_DEPTH) for i in range(2 * UNIT_DEPTH))]
    wanted = np.array(unit_scaling.branch_factors(UNIT_DEPTH, 0.5, 2.0))
    return {
        "linear": (apart(U.linear, F.linear, [*hidden, hidden[2]], x, w, b), "linear_factors"),
        "linear, constraint=None": (apart(
            partial(U.linear, constraint=None), F.linear, [*free, free[2]], x, w, b),
            "linear_factors, constrained=False"),
        "linear_readout": (apart(U.linear_readout, F.linear, [*readout, readout[2]], x, w, b),
                           "readout_factors"),
        "embedding": (apart(partial(U.embedding, ids), partial(F.embedding, ids), [
            1, unit_scaling.lookup_factor(VOCAB, tokens)], table), "lookup_factor"),
        "layer_norm": (apart(
            lambda x, w, b: U.layer_norm(x, (width,), w, b),
            lambda x, w, b: F.layer_norm(x, (width,), w, b), [1, 1, gain, gain],
            x, x2[0], x2[1]), "gain_factor"),
        "gelu": (apart(partial(U.gelu, mult=alpha), lambda x: F.gelu(alpha * x) / alpha,
                       [gelu] * 2, x), "gelu_factor"),
        "silu_glu": (apart(partial(U.silu_glu, mult=alpha), lambda x, gate: (
            x * gate * torch.sigmoid(alpha * gate)), [silu] * 3, x, x2), "silu_gate_factor"),
        "scaled_dot_product_attention": (apart(
            partial(U.scaled_dot_product_attention, is_causal=True, mult=alpha),
            partial(F.scaled_dot_product_attention, is_causal=True, scale=alpha / 8),
            [attention] * 4, *qkv), "attention_factor"),
        "cross_entropy": (apart(
            lambda z: U.cross_entropy(z, ids, mult=alpha),
            lambda z: F.cross_entropy(alpha * z, ids), [1, dlogits], draw(7, (tokens, VOCAB))),
            "dlogits_factor"),
        "transformer_residual_scaling_rule": (
            float(abs(np.array(weights) / wanted - 1).max()), "branch_factors"),
    }
