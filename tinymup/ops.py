"""The operations of both models, each a pair of pure functions: `f` → (y, cache) and `f_backward(dy, cache)` → gradients.

Letters: N rows (batch × time), B batch, T time, C width, H heads, D head dimension, V vocabulary, I fan_in, O fan_out.
dx is the gradient of the loss with respect to x, and has its shape. `ops.py` knows no sizes: every factor is an argument.
"""
import math
from typing import NamedTuple

from .backend import xp


class Mult(NamedTuple):
    """The factors on the three products of a layer: its output, the gradient of its input, the gradient of its parameter.

    All three are equal (`Mult.exact(a)`) where gradients follow the chain rule of y = a · f(x, w); u-μP chooses them apart.
    """

    y: float
    dx: float
    dw: float

    @classmethod
    def exact(cls, a):
        """One factor, three times: the gradients are those of the function."""
        return cls(a, a, a)


UNIT = Mult.exact(1.0)


class Scales(NamedTuple):
    """The numbers that a forward and a backward pass take from the scaling table."""

    mult: dict             # use of a parameter → Mult; "output" for a tied readout
    attention: float       # on the attention logits q·k
    branches: tuple        # per residual branch (skip, branch weight)


def ignore(name, x):
    """Default of `watch`, which the models call with each named activation."""


def times(a, x):
    """a · x, written into x; no pass over the array where a is 1."""
    if a != 1:
        x *= a
    return x


# ── linear maps ──────────────────────────────────────────────────────────────────────────────────────────────────────

def linear(x, w, mult=UNIT):
    """y = mult.y · x w          x (N, I)   w (I, O)   y (N, O)"""
    return times(mult.y, x @ w), (x, w, mult)


def linear_backward(dy, cache):
    """dx = mult.dx · dy wᵀ      dw = mult.dw · xᵀ dy"""
    x, w, mult = cache
    return times(mult.dx, dy @ w.T), times(mult.dw, x.T @ dy)


def bias(x, b, mult=UNIT):
    """y = x + mult.y · b          x, y (N, O)   b (O,)"""
    return x + mult.y * b, mult


def bias_backward(dy, mult):
    """dx = dy      db = mult.dw · Σ_N dy"""
    return dy, mult.dw * dy.sum(0)


def embedding(ids, w, mult=UNIT):
    """y = mult.y · w[ids]          ids (N,) integers in [0, V)   w (V, C)   y (N, C)"""
    return times(mult.y, w[ids]), (ids, w, mult)


def embedding_backward(dy, cache):
    """dw = mult.dw · onehot(ids)ᵀ dy          onehot (N, V)

    The lookup is the product onehot(ids) w, so its gradient is one too: on every device a sum in the same order, where adding
    row by row is not (and `np.add.at` took 5.2 ms instead of 2.7 for 1024 rows of 512).
    """
    ids, w, mult = cache
    onehot = (ids[:, None] == xp.arange(w.shape[0])).astype(dy.dtype)
    return times(mult.dw, onehot.T @ dy)


# ── normalisation ────────────────────────────────────────────────────────────────────────────────────────────────────

def rmsnorm(x, eps=1e-6):
    """y = x / rms,   rms = √(mean_C x² + eps)          x, y (N, C)"""
    inv = 1 / xp.sqrt((x * x).mean(-1, keepdims=True) + eps)      # (N, 1)
    y = x * inv
    return y, (y, inv)


def rmsnorm_backward(dy, cache):
    """dx = (dy − y · mean_C(dy · y)) / rms

    The term taken off is the part of dy along y: stretching x does not change y.
    """
    y, inv = cache
    dx = dy - y * (dy * y).mean(-1, keepdims=True)
    dx *= inv
    return dx


def gain(x, g, mult=UNIT):
    """y = (mult.y · g) · x          x, y (N, C)   g (C,)"""
    return x * (mult.y * g), (x, g, mult)


def gain_backward(dy, cache):
    """dx = (mult.y · g) · dy      dg = mult.dw · Σ_N dy · x"""
    x, g, mult = cache
    return dy * (mult.y * g), mult.dw * (dy * x).sum(0)


# ── activations ──────────────────────────────────────────────────────────────────────────────────────────────────────

def relu(x):
    """y = max(x, 0)"""
    positive = x > 0
    return x * positive, positive


def relu_backward(dy, positive):
    """dx = dy where x > 0, else 0"""
    return dy * positive


GELU_SLOPE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


def gelu(x):
    """y = x · (1 + t)/2,   t = tanh(√(2/π) · (x + 0.044715 x³))          (Hendrycks & Gimpel 2016, arXiv:1606.08415)

    (1 + t)/2 is the normal distribution function of x to within 5e-4. Products, not x**3: that takes 300 times as long.
    """
    t = x * x
    t *= GELU_SLOPE * GELU_CUBE
    t += GELU_SLOPE
    t *= x
    t = xp.tanh(t, out=t)
    y = t + 1
    y *= x
    y *= 0.5
    return y, (x, t)


def gelu_backward(dy, cache):
    """dx = dy · ½ (1 + t + x (1 − t²) √(2/π) (1 + 3 · 0.044715 x²))"""
    x, t = cache
    slope = x * x
    slope *= 3 * GELU_SLOPE * GELU_CUBE
    slope += GELU_SLOPE
    slope *= x                                                    # x · d(atanh t)/dx
    dx = t * t
    dx -= 1
    dx *= slope
    dx -= t
    dx -= 1
    dx *= dy
    dx *= -0.5
    return dx


def silu_gate(x, g):
    """y = x · g σ(g),   σ(g) = 1/(1 + e^-g)          x, g, y (N, F): the gated unit of SwiGLU (Shazeer 2020, arXiv:2002.05202)"""
    s = 1 / (1 + xp.exp(-g))
    a = g * s
    return x * a, (x, g, s, a)


def silu_gate_backward(dy, cache):
    """dx = dy · g σ      dg = dy · x σ (1 + g (1 − σ))"""
    x, g, s, a = cache
    dg = g - a                                                    # g (1 − σ)
    dg += 1
    dg *= s
    dg *= x
    dg *= dy
    return dy * a, dg


# ── attention ────────────────────────────────────────────────────────────────────────────────────────────────────────

def rope_angles(time, head_dim, dtype):
    """cos, sin of t · 10000^(−2i/D)          (T, 1, D/2) each: the rotation of pair i at time t (Su et al. 2021, arXiv:2104.09864)"""
    frequency = xp.exp(xp.arange(head_dim // 2) * (-2 * math.log(10000) / head_dim))
    angle = xp.arange(time)[:, None, None] * frequency
    return xp.cos(angle).astype(dtype), xp.sin(angle).astype(dtype)


def rope(x, angles):
    """Turns each pair (x_i, x_{i+D/2}) by its angle, so that q·k depends on the distance in time only.          x, y (B, T, H, D)"""
    cos, sin = angles
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    y = xp.empty_like(x)
    y[..., :half] = a * cos - b * sin
    y[..., half:] = a * sin + b * cos
    return y, angles


def rope_backward(dy, angles):
    """A rotation's transpose turns back."""
    cos, sin = angles
    return rope(dy, (cos, -sin))[0]


def attention(q, k, v, scale):
    """y = Pᵀ v,   P = softmax_keys(s),   s = scale · k qᵀ, a query's future masked          q, k, v, y (B, T, H, D)   P, s (B, H, T, T)

    Row j, column i of s is how query i scores key j: with keys along rows the softmax runs over the second-last axis, where
    NumPy reduces whole rows at once (1.6 ms instead of 2.6 for 16 × 16 × 64 × 64).
    """
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))               # (B, H, T, D)
    s = times(scale, k @ q.swapaxes(-1, -2))
    s += causal_mask(s.shape[-1], s.dtype)
    largest = s.max(-2, keepdims=True)                            # (B, H, 1, T)
    p = s
    p -= largest
    p = xp.exp(p, out=p)
    p /= p.sum(-2, keepdims=True)
    y = p.swapaxes(-1, -2) @ v
    return y.swapaxes(1, 2), (q, k, v, p, largest, scale)


def attention_backward(dy, cache):
    """Forward: s → P → y. Backward: y → P → s → q, k.          ds = P · (dP − Σ_keys dP · P)

    Masked entries need no care: there P is 0, so ds is 0.
    """
    q, k, v, p, _, scale = cache
    dy = dy.swapaxes(1, 2)
    dv = p @ dy
    ds = v @ dy.swapaxes(-1, -2)                                  # dP
    ds *= p
    ds -= p * ds.sum(-2, keepdims=True)
    ds = times(scale, ds)
    dq = ds.swapaxes(-1, -2) @ k
    dk = ds @ q
    return dq.swapaxes(1, 2), dk.swapaxes(1, 2), dv.swapaxes(1, 2)


def attention_logits(cache):
    """s of `attention`, before the mask, computed anew          (B, H, T, T)"""
    q, k, _, _, _, scale = cache
    return scale * (k @ q.swapaxes(-1, -2))


def causal_mask(time, dtype):
    """(T, T): 0 where the key (row) is not later than the query (column), −inf where it lies in the query's future."""
    return xp.tril(xp.full((time, time), -math.inf, dtype), -1)


# ── residual branches and the loss ───────────────────────────────────────────────────────────────────────────────────

def residual(x, branch, weight):
    """y = skip · x + weight · branch,   weight = (skip, branch weight)          x, branch, y (N, C)"""
    skip, amount = weight
    y = x * skip if skip != 1 else x
    return y + (branch if amount == 1 else branch * amount), weight


def residual_backward(dy, weight):
    """dx = skip · dy      dbranch = branch weight · dy"""
    skip, amount = weight
    return dy if skip == 1 else dy * skip, dy if amount == 1 else dy * amount


def cross_entropy(logits, targets):
    """loss = mean_N (log Σ_V e^logits − logits[target]), in nats          logits (N, V)   targets (N,) integers   loss ()"""
    largest = logits.max(-1, keepdims=True)
    p = xp.exp(logits - largest)
    total = p.sum(-1, keepdims=True)
    p /= total
    rows = xp.arange(len(targets))
    loss = (xp.log(total[:, 0]) + largest[:, 0] - logits[rows, targets]).mean()
    return loss, (p, targets)


def cross_entropy_backward(cache):
    """dlogits = (softmax(logits) − onehot(targets)) / N"""
    p, targets = cache
    dlogits = p.copy()
    dlogits[xp.arange(len(targets)), targets] -= 1
    dlogits *= 1 / len(targets)
    return dlogits


# ── layers: operations on the parameters of a dict, by name ──────────────────────────────────────────────────────────

ACTIVATIONS = {"relu": (relu, relu_backward), "gelu": (gelu, gelu_backward)}


def dense(x, p, name, mult):
    """The matrix p[name], and its bias where there is one; mult is a dict keyed like p."""
    y, c_linear = linear(x, p[name], mult[name])
    bias_name = name + ".bias"
    if bias_name not in p:
        return y, (c_linear, None)
    y, c_bias = bias(y, p[bias_name], mult[bias_name])
    return y, (c_linear, c_bias)


def dense_backward(dy, cache, g, name):
    """dx; the gradients of matrix and bias are written into the dict g."""
    c_linear, c_bias = cache
    if c_bias is not None:
        dy, g[name + ".bias"] = bias_backward(dy, c_bias)
    dx, g[name] = linear_backward(dy, c_linear)
    return dx


def norm(x, p, name, mult):
    """RMSNorm, and the gain p[name] where there is one."""
    y, c_norm = rmsnorm(x)
    if name not in p:
        return y, (c_norm, None)
    y, c_gain = gain(y, p[name], mult[name])
    return y, (c_norm, c_gain)


def norm_backward(dy, cache, g, name):
    """dx; the gradient of the gain is written into the dict g."""
    c_norm, c_gain = cache
    if c_gain is not None:
        dy, g[name] = gain_backward(dy, c_gain)
    return rmsnorm_backward(dy, c_norm)
