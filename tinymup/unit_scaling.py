"""u-μP's op factors: numbers only, the ops themselves stand in ops.py.

Unit scaling asks that every tensor of the forward and of the backward pass has a standard deviation near 1 at initialisation,
given unit-normal inputs, weights and output gradients. Each op f gets constants for that:

    forward    y  = y_factor · f(x, w)
    backward   dx = dx_factor · (∂f/∂x)ᵀ dy        dw = dw_factor · (∂f/∂w)ᵀ dy

The backward factors multiply the gradient of the *unscaled* f: dy is not multiplied by y_factor on the way. dx_factor = y_factor
is the chain rule; where they differ, the gradient is the true one times a constant, which Adam does not notice for a weight, and
which is harmless for an x that reaches the loss along this path only. Hence the constraint: an input that also flows past
the op, along a residual stream, must keep dx_factor = y_factor. Rotary positions and norms without gain have factor 1.

Source of the formulas: Blake et al. 2024, arXiv:2407.17465 and graphcore-research/unit-scaling 0.3.5, `functional.py`. Where a
formula says "between", it interpolates two limits that can be worked out; the exponent in between is the authors' empirical fit.
"""
import math


# Each function returns (y, dx, dw), or the one number that its op has.

def log_interpolate(a, lower, upper):
    """lower^(1−a) · upper^a: from lower at a = 0 to upper at a = 1."""
    return math.exp((1 - a) * math.log(lower) + a * math.log(upper))


def linear(fan_in, fan_out, rows, constrained=True):
    """(y, dx, dw) of y = x w, w of shape (fan_in, fan_out): each sums over one axis of unit terms, and a sum of n has std √n.

    x has `rows` rows (batch × sequence). dw also serves a bias. constrained=False gives dx its own factor 1/√fan_out, as
    unit_scaling's FFN does: over its up/gate and down layers the forward and backward factors multiply to the same number.
    """
    y = fan_in**-0.5
    return y, y if constrained else fan_out**-0.5, rows**-0.5


def linear_readout(fan_in, fan_out, rows):
    """(y, dx, dw) of the last layer. y = 1/fan_in is μP's: logits start small, and grow to Θ(1) as features and weights align.

    The authors' slides give dx as 1/√fan_in; their code has 1/√fan_out, which makes dx unit-scaled, and is followed here.
    """
    return 1 / fan_in, fan_out**-0.5, rows**-0.5


def embedding(vocab, tokens):
    """dw of the lookup: each of the vocab rows sums about tokens/vocab gradients. (y is 1: rows are copied.)"""
    return (vocab / tokens)**0.5


def norm_gain(rows):
    """dw of a norm's gain or bias, a sum over rows. (y and dx are 1: a norm's output has unit scale already.)"""
    return rows**-0.5


def gelu(alpha=1.0):
    """y and dx of gelu(αx)/α: between 2 (α → 0, linear limit x/2) and √(2/(1−1/π)) (α → ∞, ReLU limit)."""
    return log_interpolate(1 / (1 + 0.25 / alpha**2), lower=2, upper=(2 / (1 - 1 / math.pi))**0.5)


def relu(alpha=1.0):
    """y and dx of relu(x), whatever α: `gelu`'s ReLU limit."""
    return (2 / (1 - 1 / math.pi))**0.5


def silu(alpha=1.0):
    """y and dx of x·σ(αx): the same limits and the same fit as `gelu`."""
    return gelu(alpha)


def silu_glu(alpha=1.0):
    """y and both dx of x·g·σ(αg): between 2 (α → 0, bilinear limit x·g/2) and √2 (α → ∞, ReLU-gate limit)."""
    return log_interpolate(1 / (1 + 1 / alpha**2), lower=2, upper=2**0.5)


def attention(alpha, head_dim, seq, causal=True):
    """y and dx (of q, k and v) of softmax(α·q kᵀ/head_dim)·v: one over the output's std, a fit between two limits.

    Flat limit (α → 0): the mean of seq values has std √(1/seq); causal, position t averages t of them, and the mean of 1/t is
    about ln(seq)/seq. One-hot limit (α → ∞): one value is copied, std 1.
    unit_scaling takes ln(seq) also at seq = 1, where it fails; a single value has std 1 in both limits.
    """
    flat = (math.log(seq) / seq if causal and seq > 1 else 1 / seq)**0.5
    return 1 / log_interpolate(1 / (1 + 4 * head_dim / alpha**2), lower=flat, upper=1.0)


def residual(depth, alpha_res=1.0, alpha_res_ratio=1.0):
    """The pairs (a, b) of x ← a·f(x) + b·x for the 2·depth sublayers (attention, FFN, attention, …); a² + b² = 1.

    They are what an unscaled stream, embedding + Σ branches, becomes when every sublayer divides it by the std it then has. In
    that stream the embedding has variance 1, all attention branches together α_a², all FFN branches α_f², with
    α_a = α_res_ratio·α_f and (α_a² + α_f²)/2 = α_res². In the paper's terms (appendix G) τ² = branch/stream, a = τ/√(1+τ²)
    and b = 1/√(1+τ²).
    Backward: the branch receives dy itself, not a·dy, and a is applied where it leaves the stream: dx = a·(dx of f) + b·dy.
    """
    ffn = 2 * alpha_res**2 / (1 + alpha_res_ratio**2) / depth
    attention = alpha_res_ratio**2 * ffn
    stream = 1.0
    pairs = []
    for branch in [attention, ffn] * depth:
        pairs.append(((branch / (stream + branch))**0.5, (stream / (stream + branch))**0.5))
        stream += branch
    return pairs


def cross_entropy(vocab):
    """dlogits factor on softmax(α·logits) − onehot: one over its std at the uniform prediction (flat limit, variance (V−1)/V²).

    Neither the mean's 1/tokens nor α enters dlogits; the reported loss is the plain mean.
    """
    return vocab / (vocab - 1)**0.5
