"""The operations, in pairs: `f` returns (y, cache), and `f_backward(dy, cache)` returns gradients.

Letters: N rows (batch × time), B batch, T time, C width, H heads, D head dimension, V vocabulary,
I fan_in, O fan_out, F feed-forward width. dx is the gradient of the loss with respect to x. Factors
that depend on a width are arguments. Read next: layers.py, which gives these their parameters."""
import math
from typing import NamedTuple

from .backend import blocks, fused, kept, xp
from .number_formats import quantize

# No public function writes to its inputs. The tests differentiate f with a complex step in one of
# its inputs, so `a += b` needs an a that is complex whenever b is.


class Mult(NamedTuple):
    """The factors on y, dx and dw: equal by the chain rule (`exact`), or any three, as in u-μP."""
    y: float
    dx: float
    dw: float
    formats: tuple = None   # the number formats of (x and w, dy), if these are rounded
    exact = classmethod(lambda cls, a: cls(a, a, a))

UNIT = Mult.exact(1.0)

def times(a, x):
    """a · x, or x itself if a is 1."""
    return a * x if a != 1 else x


def linear(x, w, mult=UNIT):
    """y = mult.y · x w          x (N, I)   w (I, O)   y (N, O)     rounded first if mult.formats"""
    if mult.formats:
        x, w = quantize(x, mult.formats[0]), quantize(w, mult.formats[0])
    return times(mult.y, x @ w), (x, w, mult)

def linear_backward(dy, cache):
    """dx = mult.dx · dy wᵀ      dw = mult.dw · xᵀ dy          dy rounded likewise"""
    x, w, mult = cache
    if mult.formats:
        dy = quantize(dy, mult.formats[1])
    return times(mult.dx, dy @ w.T), times(mult.dw, x.T @ dy)


def bias(x, b, mult=UNIT):
    """y = x + mult.y · b          x, y (N, O)   b (O,)"""
    return x + mult.y * b, mult

def bias_backward(dy, mult):
    """dx = dy      db = mult.dw · Σ_N dy"""
    return dy, mult.dw * dy.sum(0)


def lookup(ids, w, mult=UNIT):
    """y = mult.y · w[ids]          ids (N,) integers in [0, V)   w (V, C)   y (N, C)"""
    return times(mult.y, w[ids]), (ids, w, mult)

def lookup_backward(dy, cache):
    """dw = mult.dw · onehot(ids)ᵀ dy          onehot (N, V)"""
    ids, w, mult = cache
    onehot = (ids[:, None] == xp.arange(w.shape[0])).astype(dy.dtype)
    return times(mult.dw, onehot.T @ dy)   # sums in a fixed order; scattered adds on a GPU do not


def rmsnorm(x, eps=1e-6):
    """y = x / rms,   rms = √(mean_C x² + eps)          x, y (N, C)"""
    inv = 1 / xp.sqrt(row_mean(x, x) + eps)                       # (N, 1)
    y = x * inv
    return y, (y, inv)

def rmsnorm_backward(dy, cache):
    """dx = (dy − y · mean_C(dy · y)) / rms          orthogonal to x, but for eps"""
    y, inv = cache
    dx = y * -row_mean(dy, y)
    return (dx + dy) * inv

def row_mean(a, b):
    """mean_C a · b          a, b (N, C) → (N, 1)          makes no array of the products"""
    return xp.einsum("nc,nc->n", a, b)[:, None] / a.shape[-1]


def gain(x, weight, mult=UNIT):
    """y = (mult.y · weight) · x          x, y (N, C)   weight (C,)"""
    return x * (mult.y * weight), (x, weight, mult)

def gain_backward(dy, cache):
    """dx = (mult.y · weight) · dy      dweight = mult.dw · Σ_N dy · x"""
    x, weight, mult = cache
    return dy * (mult.y * weight), mult.dw * (dy * x).sum(0)


def relu(x, factor=1.0, alpha=1.0):
    """y = factor · max(x, 0)          alpha changes nothing, since relu(α x)/α = relu(x)"""
    slope = times(factor, (x > 0).astype(x.dtype))
    return x * slope, slope

def relu_backward(dy, slope):
    """dx = factor · dy where x > 0, else 0"""
    return dy * slope


# G is within 5e-4 of the normal distribution function (Hendrycks & Gimpel 2016, arXiv:1606.08415).
GELU_SLOPE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715

def gelu(x, factor=1.0, alpha=1.0):
    """y = factor · x · G,   G = (1 + tanh(√(2/π) (z + 0.044715 z³)))/2,   z = α x"""
    y, gate = xp.empty_like(x), xp.empty_like(x)                  # gate: G
    _gelu(x, gate, y, cube=GELU_SLOPE * GELU_CUBE * alpha**3, slope=GELU_SLOPE * alpha)
    return times(factor, y), (x, gate, factor, alpha)

@fused
def _gelu(x, gate, y, *, cube, slope):
    xp.tanh((x * x * cube + slope) * x, out=gate)
    gate += 1
    gate *= 0.5
    xp.multiply(x, gate, out=y)

def gelu_backward(dy, cache):
    """dx = factor · dy · (G + G (1 − G) x · 2 α √(2/π) (1 + 3 · 0.044715 z²))"""
    x, gate, factor, alpha = cache
    dx = xp.empty_like(x)
    _gelu_backward(x, gate, dy, dx,
                   cube=6 * GELU_SLOPE * GELU_CUBE * alpha**3, slope=2 * GELU_SLOPE * alpha)
    return times(factor, dx)

@fused
def _gelu_backward(x, gate, dy, dx, *, cube, slope):
    xp.multiply(((x * x * cube + slope) * x * (1 - gate) + 1) * gate, dy, out=dx)


def silu_gate(x, gate, factor=1.0, alpha=1.0):
    """y = factor · x · gate · σ(α gate)    all (N, F)   SwiGLU: Shazeer 2020, arXiv:2002.05202"""
    s = 1 / (1 + xp.exp(-alpha * gate))
    a = times(factor, gate * s)
    return x * a, (x, gate, s, a, factor, alpha)

def silu_gate_backward(dy, cache):
    """dx = factor · dy · gate σ      dgate = factor · dy · x σ (1 + α gate (1 − σ))"""
    x, gate, s, a, factor, alpha = cache
    dgate = ((1 - s) * gate * alpha + 1) * s * x * dy
    return dy * a, times(factor, dgate)


@kept
def rope_angles(time, heads, head_dim, dtype, base=10000):
    """(cos, cos), (−sin, sin), (sin, −sin) on the halves of D          (T, H, D) each
    of t · base^(−2i/D), the angle of pair i at time t. The arrays repeat for each head,
    since NumPy is fast where the last axes are contiguous. (Su et al. 2021, arXiv:2104.09864.)"""
    frequency = xp.exp(xp.arange(head_dim // 2) * (-2 * math.log(base) / head_dim))
    angle = xp.arange(time)[:, None, None] * frequency
    cos, sin = xp.cos(angle), xp.sin(angle)
    pairs = (cos, cos), (-sin, sin), (sin, -sin)
    return tuple(xp.tile(xp.concatenate(pair, axis=-1).astype(dtype), (1, heads, 1))
                 for pair in pairs)

def rope(x, angles):
    """y_i = x_i cos − x_{i+D/2} sin,   y_{i+D/2} = x_{i+D/2} cos + x_i sin          (B, T, H, D)"""
    cos, sin, _ = angles
    half = x.shape[-1] // 2
    other = xp.concatenate([x[..., half:], x[..., :half]], axis=-1)
    return x * cos + other * sin, angles

def rope_backward(dy, angles):
    """dx = dy, rotated by the negative angle: the transpose of a rotation is its inverse"""
    cos, sin, minus_sin = angles
    return rope(dy, (cos, minus_sin, sin))[0]


@kept
def causal_mask(time, dtype):
    """(T, T): 0 where the key (row) is not later than the query (column), else −inf."""
    return xp.tril(xp.full((time, time), -math.inf, dtype), -1)

def attention(q, k, v, scale, factor=1.0):
    """y = factor · Pᵀ v,   P = softmax_keys(s + mask),   s = scale · k qᵀ
    q, k, v, y (B, T, H, D)   P, s (B, H, T, T): a row per key, a column per query. The softmax runs
    over the second-last axis, where NumPy reduces whole rows at once."""
    q = (q * scale).swapaxes(1, 2)                                # (B, H, T, D)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    p = xp.empty((*q.shape[:3], q.shape[2]), xp.result_type(q, k))
    largest = xp.empty_like(p[:, :, :1])
    for b in blocks(p):
        s = xp.matmul(k[b], q[b].swapaxes(-1, -2), out=p[b])
        s += causal_mask(len(s[0, 0]), s.dtype)
        s -= xp.max(s, axis=-2, keepdims=True, out=largest[b])
        xp.exp(s, out=s)
        s /= s.sum(-2, keepdims=True)
    y = p.swapaxes(-1, -2) @ v
    return times(factor, y).swapaxes(1, 2), (q, k, v, p, y, largest, scale, factor)

def attention_backward(dy, cache):
    """dv = P e   ds = P (dP − Σ_keys dP P)   dq = scale·dsᵀ k   dk = scale·ds q   e = factor·dy"""
    q, k, v, p, y, _, scale, factor = cache
    dy = times(factor, dy).swapaxes(1, 2)
    dv = p @ dy
    along, ds = (dy * y).sum(-1)[:, :, None], xp.empty_like(p)    # along: Σ_keys dP · P
    for b in blocks(ds):
        xp.matmul(v[b], dy[b].swapaxes(-1, -2), out=ds[b])        # dP
        ds[b] -= along[b]
        ds[b] *= p[b]
    dq = times(scale, ds.swapaxes(-1, -2) @ k)
    dk = ds @ q                                                   # q is scaled already
    return dq.swapaxes(1, 2), dk.swapaxes(1, 2), dv.swapaxes(1, 2)

def attention_logits(cache):
    """s of `attention`, recomputed from its cache          (B, H, T, T)"""
    q, k, *_ = cache
    return k @ q.swapaxes(-1, -2)

def largest_by_head(cache):
    """The largest attention logit of each head in the batch, as the softmax saw it          (H,)"""
    *_, largest, _, _ = cache
    return largest.max((0, 2, 3))


class Branch(NamedTuple):
    """The weights of a residual branch: y = skip · x + amount · f(x).
    Backward, dx = skip · dy + leave · f'(enter · dy). With enter · leave = amount this is the chain
    rule. SP and μP scale the gradient before f's backward pass, u-μP after it."""
    skip: float
    amount: float
    enter: float
    leave: float

def residual(x, fx, branch):
    """y = skip · x + amount · fx          x, fx, y (N, C)   branch a `Branch`"""
    return times(branch.skip, x) + times(branch.amount, fx), branch

def residual_backward(dy, branch):
    """dskip = skip · dy      dfx = enter · dy, to be sent back through f to `residual_join`"""
    return times(branch.skip, dy), times(branch.enter, dy)

def residual_join(dskip, dx, branch):
    """dskip + leave · dx, where the gradients of skip and branch meet"""
    return dskip + times(branch.leave, dx)


def cross_entropy(logits, targets, alpha=1.0, factor=None):
    """loss = mean_N (log Σ_V e^z − z[target]) in nats,   z = α · logits
    logits (N, V)   targets (N,) integers   loss ()   factor: of dlogits, None for the mean's α/N"""
    z = times(alpha, logits)
    largest = z.max(-1, keepdims=True)
    p = xp.exp(z - largest)
    total = p.sum(-1, keepdims=True)
    loss = (xp.log(total[:, 0]) + largest[:, 0] - z[xp.arange(len(z)), targets]).mean()
    return loss, (p / total, targets, alpha / len(z) if factor is None else factor)

def cross_entropy_backward(cache):
    """dlogits = factor · (softmax(z) − onehot(targets))"""
    p, targets, factor = cache
    return factor * (p - (targets[:, None] == xp.arange(p.shape[-1])))
