"""u-μP's factors, which give every tensor of both passes a standard deviation near 1 at the start.

An operation f has three factors: forward y = y_factor · f(x, w), and backward dx = dx_factor ·
(∂f/∂x)ᵀ dy and dw = dw_factor · (∂f/∂w)ᵀ dy. They are chosen for unit-normal x, w and dy. (Blake et
al. 2024, arXiv:2407.17465; graphcore-research/unit-scaling 0.3.5, functional.py.) Read next:
number_formats.py."""
import math

from . import ops
from .layers import Scales
from .resolve import attention_scale, fans

# dx and dw are gradients of f, not of y_factor · f. dx_factor = y_factor is the chain rule. With
# another factor the gradient is the true one times a constant. For a weight, Adam does not notice
# this constant. For an input it does no harm if every path from the input to the loss has the same
# one. An input that also flows past a branch, along the residual stream, has two paths. So in a
# branch the product of all dx_factors must be that of the y_factors. Most f are *constrained* to
# dx_factor = y_factor; up and down are not, because each has the other's. Where a factor lies
# between two limits, the authors have fitted the exponent that interpolates them.


def log_interpolate(a, lower, upper):
    """lower^(1−a) · upper^a"""
    return math.exp((1 - a) * math.log(lower) + a * math.log(upper))


def linear_factors(fan_in, fan_out, tokens, constrained=True):
    """(y, dx, dw) of y = x w with w (fan_in, fan_out): a sum of n unit terms has std √n.
    x has a row per token, batch × sequence."""
    y = fan_in**-0.5
    return y, y if constrained else fan_out**-0.5, tokens**-0.5


def readout_factors(fan_in, fan_out, tokens):
    """(y, dx, dw) of the last layer. y = 1/fan_in is μP's: features and weights will align.
    The authors' slides have 1/√fan_in for dx. Their code has 1/√fan_out, which gives unit scale."""
    return 1 / fan_in, fan_out**-0.5, tokens**-0.5


def lookup_factor(vocab, lookups):
    """dw of a lookup: each of the vocab rows sums about lookups/vocab gradients. y is 1."""
    return (vocab / lookups)**0.5


def gain_factor(tokens):
    """dw of a gain or a bias, a sum over tokens. y and dx are 1: a norm has unit scale already."""
    return tokens**-0.5


def gelu_factor(alpha=1.0):
    """y and dx of gelu(αx)/α: between 2 (α → 0, x/2) and √(2/(1−1/π)) (α → ∞, ReLU)."""
    return log_interpolate(1 / (1 + 0.25 / alpha**2), lower=2, upper=relu_factor())


def relu_factor(alpha=1.0):
    """y and dx of relu(x), for every α."""
    return (2 / (1 - 1 / math.pi))**0.5


def silu_gate_factor(alpha=1.0):
    """y, dx and dgate of x·gate·σ(α·gate): from 2 (α → 0, x·gate/2) to √2 (α → ∞, x·relu(gate))."""
    return log_interpolate(1 / (1 + 1 / alpha**2), lower=2, upper=2**0.5)


def attention_factor(alpha, head_dim, seq, causal=True):
    """y and dx (of q, k and v) of softmax(α·q kᵀ/head_dim)·v, between two limits.
    Flat (α → 0): a mean of seq values has std √(1/seq). A causal mean at position t has t values,
    and the average of 1/t is about ln(seq)/seq. One-hot (α → ∞): a single value has std 1.
    At seq = 1, where ln(seq) is 0, there is a single value."""
    flat = (math.log(seq) / seq if causal and seq > 1 else 1 / seq)**0.5
    return 1 / log_interpolate(1 / (1 + 4 * head_dim / alpha**2), lower=flat, upper=1.0)


def branch_factors(depth, alpha_res=1.0, alpha_res_ratio=1.0):
    """(a, b) of x ← a·f(x) + b·x for 2·depth branches (attention, FFN, attention, …), a² + b² = 1.
    The weights are those of a stream x ← x + c·f(x) that is divided by its std after every branch.
    The embedding has variance 1. Attention branches add the variance α_a² in all, FFN branches
    α_f², with α_a = α_res_ratio·α_f and (α_a² + α_f²)/2 = α_res². In the paper's terms (App. G) τ²
    is the branch's variance over the stream's, a = τ/√(1+τ²) and b = 1/√(1+τ²)."""
    ffn = 2 * alpha_res**2 / (1 + alpha_res_ratio**2) / depth
    attention = alpha_res_ratio**2 * ffn
    stream, pairs = 1.0, []
    for branch in [attention, ffn] * depth:
        pairs.append(((branch / (stream + branch))**0.5, (stream / (stream + branch))**0.5))
        stream += branch
    return pairs


def dlogits_factor(vocab):
    """On softmax(α·logits) − onehot: one over its std at the uniform prediction, √(V−1)/V.
    The gradient has neither the mean's 1/tokens nor α. The reported loss is the plain mean."""
    return vocab / (vocab - 1)**0.5


ACTIVATION_FACTORS = {"swiglu": silu_gate_factor, "gelu": gelu_factor, "relu": relu_factor}


def parameter_mult(row, tokens):
    """The `ops.Mult` of one parameter: y from the table, dx and dw from the functions above."""
    fan_in, fan_out = fans(row.shape)
    if row.spec.lookups:
        dx, dw = None, lookup_factor(fan_in, tokens * row.spec.lookups)
    elif row.role in ("vector", "scalar"):
        dx, dw = row.mult, gain_factor(tokens)
    elif row.role == "output":
        _, dx, dw = readout_factors(fan_in, fan_out, tokens)
    else:
        _, dx, dw = linear_factors(fan_in, fan_out, tokens, row.spec.constrained)
    return ops.Mult(row.mult, dx, dw)


def scales(rows, architecture, hyper):
    """The `Scales` of a network under u-μP."""
    mult = {row.name: parameter_mult(row, hyper.batch * hyper.seq) for row in rows}
    found = Scales(mult, activation=ACTIVATION_FACTORS[architecture.ffn](hyper.alpha_ffn),
                   activation_alpha=hyper.alpha_ffn, logits=hyper.alpha_loss,
                   dlogits=dlogits_factor(architecture.vocab))
    if "head_dim" not in architecture._fields:
        return found
    weights = branch_factors(architecture.depth, hyper.alpha_res, hyper.alpha_res_ratio)
    return found._replace(
        attention=hyper.alpha_attn * attention_scale(hyper.param, architecture.head_dim, None),
        attention_out=attention_factor(hyper.alpha_attn, architecture.head_dim, hyper.seq),
        branches=tuple(ops.Branch(skip=b, amount=a, enter=1.0, leave=a) for a, b in weights))
