"""The operations of both models, each a pair of pure functions: `f` → (y, cache) and `f_backward(dy, cache)` → gradients.

Letters: N rows (batch × time), B batch, T time, C width, H heads, D head dimension, V vocabulary, I fan_in, O fan_out.
dx is the gradient of the loss with respect to x, and has its shape. `ops.py` knows no sizes: every factor is an argument.
"""
import math
from typing import NamedTuple

from .backend import blocks, xp
from .number_formats import quantize


class Mult(NamedTuple):
    """The factors on the three products of a layer: its output, the gradient of its input, the gradient of its parameter.

    All three are equal (`Mult.exact(a)`) where gradients follow the chain rule of y = a · f(x, w); u-μP chooses them apart.
    """

    y: float
    dx: float
    dw: float
    formats: tuple = None   # number formats of (x and w, dy), where the operands are rounded

    @classmethod
    def exact(cls, a):
        """One factor, three times: the gradients are those of the function."""
        return cls(a, a, a)


UNIT = Mult.exact(1.0)


class Branch(NamedTuple):
    """The weights of a residual branch: y = skip · x + amount · f(x).

    Its gradient is scaled where it enters f and where it leaves: dx = skip · dy + leave · f'(enter · dy). The chain rule holds as
    long as enter · leave = amount. SP and μP scale on the way in; u-μP on the way out, so that gradients inside f keep unit scale.
    """

    skip: float
    amount: float
    enter: float
    leave: float


class Scales(NamedTuple):
    """The numbers that a forward and a backward pass take from the scaling table. Those with a default are u-μP's."""

    mult: dict                    # use of a parameter → Mult; "output" for a tied readout
    attention: float              # on the attention logits q·k
    branches: tuple = ()          # a Branch per residual branch
    attention_out: float = 1.0    # on the output of the attention
    activation: float = 1.0       # on the output of the activation
    activation_alpha: float = 1.0 # inside it, on what is squashed
    logits: float = 1.0           # on the logits that the softmax of the loss sees
    dlogits: float = None         # on softmax − onehot; None: 1/N and `logits`, the gradient of the mean loss


def ignore(name, x):
    """Default of `watch`, which the models call with each named activation."""


def times(a, x):
    """a · x, written into x; no pass over the array where a is 1."""
    if a != 1:
        x *= a
    return x


# ── linear maps ──────────────────────────────────────────────────────────────────────────────────────────────────────

def linear(x, w, mult=UNIT):
    """y = mult.y · x w          x (N, I)   w (I, O)   y (N, O)          mult.formats: x and w rounded first"""
    if mult.formats:
        x, w = quantize(x, mult.formats[0]), quantize(w, mult.formats[0])
    return times(mult.y, x @ w), (x, w, mult)


def linear_backward(dy, cache):
    """dx = mult.dx · dy wᵀ      dw = mult.dw · xᵀ dy          mult.formats: dy rounded first"""
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
    inv = 1 / xp.sqrt(row_mean(x, x) + eps)                       # (N, 1)
    y = x * inv
    return y, (y, inv)


def rmsnorm_backward(dy, cache):
    """dx = (dy − y · mean_C(dy · y)) / rms

    The term taken off is the part of dy along y: stretching x does not change y.
    """
    y, inv = cache
    dx = y * -row_mean(dy, y)
    dx += dy
    dx *= inv
    return dx


def row_mean(a, b):
    """mean_C a · b          a, b (N, C) → (N, 1), without an array for the products"""
    return xp.einsum("nc,nc->n", a, b)[:, None] / a.shape[-1]


def gain(x, g, mult=UNIT):
    """y = (mult.y · g) · x          x, y (N, C)   g (C,)"""
    return x * (mult.y * g), (x, g, mult)


def gain_backward(dy, cache):
    """dx = (mult.y · g) · dy      dg = mult.dw · Σ_N dy · x"""
    x, g, mult = cache
    return dy * (mult.y * g), mult.dw * (dy * x).sum(0)


# ── activations ──────────────────────────────────────────────────────────────────────────────────────────────────────

def relu(x, mult=1.0, alpha=1.0):
    """y = mult · max(x, 0).   alpha changes nothing: relu(α x)/α = relu(x)"""
    slope = times(mult, (x > 0).astype(x.dtype))
    return x * slope, slope


def relu_backward(dy, slope):
    """dx = mult · dy where x > 0, else 0"""
    return dy * slope


GELU_SLOPE, GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


def gelu(x, mult=1.0, alpha=1.0):
    """y = mult · x · (1 + t)/2,   t = tanh(√(2/π) · (z + 0.044715 z³)),   z = α x          (Hendrycks & Gimpel 2016, arXiv:1606.08415)

    (1 + t)/2 is the normal distribution function of z to within 5e-4. Products, not x**3: that takes 300 times as long.
    """
    y, gate = xp.empty_like(x), xp.empty_like(x)                  # gate: (1 + t)/2
    for i in blocks(x):
        g = xp.multiply(x[i], x[i], out=gate[i])
        g *= GELU_SLOPE * GELU_CUBE * alpha**3
        g += GELU_SLOPE * alpha
        g *= x[i]
        xp.tanh(g, out=g)
        g += 1
        g *= 0.5
        xp.multiply(x[i], g, out=y[i])
    return times(mult, y), (x, gate, mult, alpha)


def gelu_backward(dy, cache):
    """dx = mult · dy · (G + G (1 − G) x · 2 α √(2/π) (1 + 3 · 0.044715 z²)),   G = (1 + t)/2,   G (1 − G) = (1 − t²)/4"""
    x, gate, mult, alpha = cache
    dx = xp.empty_like(x)
    for i in blocks(x):
        d = xp.multiply(x[i], x[i], out=dx[i])
        d *= 6 * GELU_SLOPE * GELU_CUBE * alpha**3
        d += 2 * GELU_SLOPE * alpha
        d *= x[i]
        d *= 1 - gate[i]
        d += 1
        d *= gate[i]
        d *= dy[i]
    return times(mult, dx)


def silu_gate(x, g, mult=1.0, alpha=1.0):
    """y = mult · x · g σ(α g),   σ(z) = 1/(1 + e^-z)          x, g, y (N, F): the gated unit of SwiGLU (Shazeer 2020, arXiv:2002.05202)"""
    s = 1 / (1 + xp.exp(-alpha * g))
    a = times(mult, g * s)
    return x * a, (x, g, s, a, mult, alpha)


def silu_gate_backward(dy, cache):
    """dx = mult · dy · g σ      dg = mult · dy · x σ (1 + α g (1 − σ))"""
    x, g, s, a, mult, alpha = cache
    dg = 1 - s
    dg *= g
    dg *= alpha
    dg += 1
    dg *= s
    dg *= x
    dg *= dy
    return dy * a, times(mult, dg)


# ── attention ────────────────────────────────────────────────────────────────────────────────────────────────────────

def rope_angles(time, heads, head_dim, dtype):
    """(cos, cos), (−sin, sin) of t · 10000^(−2i/D)          (T, H, D) each: the rotation of pair i at time t (Su et al. 2021, arXiv:2104.09864)

    As wide as the arrays they multiply, for NumPy's inner loops run along the last axes that lie together in memory.
    """
    frequency = xp.exp(xp.arange(head_dim // 2) * (-2 * math.log(10000) / head_dim))
    angle = xp.arange(time)[:, None, None] * frequency
    cos, sin = xp.cos(angle), xp.sin(angle)
    return tuple(xp.tile(xp.concatenate(pair, axis=-1).astype(dtype), (1, heads, 1)) for pair in ((cos, cos), (-sin, sin)))


def rope(x, angles):
    """Turns each pair (x_i, x_{i+D/2}) by its angle, so that q·k depends on the distance in time only.          x, y (B, T, H, D)"""
    cos, sin = angles
    half = x.shape[-1] // 2
    y = xp.empty(x.shape, x.dtype)
    y[..., :half], y[..., half:] = x[..., half:], x[..., :half]   # each pair exchanged
    y *= sin
    y += x * cos
    return y, angles


def rope_backward(dy, angles):
    """A rotation's transpose turns back."""
    cos, sin = angles
    return rope(dy, (cos, -sin))[0]


def attention(q, k, v, scale, mult=1.0):
    """y = mult · Pᵀ v,   P = softmax_keys(s),   s = scale · k qᵀ, a query's future masked          q, k, v, y (B, T, H, D)   P, s (B, H, T, T)

    Row j, column i of s is how query i scores key j: with keys along rows the softmax runs over the second-last axis, where
    NumPy reduces whole rows at once (1.6 ms instead of 2.6 for 16 × 16 × 64 × 64).
    """
    q = (q * scale).swapaxes(1, 2)                                # (B, H, T, D)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    batch, heads, time, _ = q.shape
    dtype = xp.result_type(q, k, v)
    mask = causal_mask(time, dtype)
    p, largest = xp.empty((batch, heads, time, time), dtype), xp.empty((batch, heads, 1, time), dtype)
    for b in blocks(p):
        s = xp.matmul(k[b], q[b].swapaxes(-1, -2), out=p[b])
        s += mask
        s -= xp.max(s, axis=-2, keepdims=True, out=largest[b])
        xp.exp(s, out=s)
        s /= s.sum(-2, keepdims=True)
    y = p.swapaxes(-1, -2) @ v
    return (mult * y if mult != 1 else y).swapaxes(1, 2), (q, k, v, p, y, largest, scale, mult)


def attention_backward(dy, cache):
    """Forward: s → P → y. Backward: y → P → s → q, k.          ds = P · (dP − Σ_keys dP · P),   Σ_keys dP · P = Σ_D dy · y

    Masked entries need no care: there P is 0, so ds is 0.
    """
    q, k, v, p, y, _, scale, mult = cache
    dy = (mult * dy if mult != 1 else dy).swapaxes(1, 2)
    dv = p @ dy
    along = (dy * y).sum(-1)[:, :, None]                          # (B, H, 1, T)
    ds = xp.empty_like(p)
    for b in blocks(ds):
        xp.matmul(v[b], dy[b].swapaxes(-1, -2), out=ds[b])        # dP
        ds[b] -= along[b]
        ds[b] *= p[b]
    dq = times(scale, ds.swapaxes(-1, -2) @ k)
    dk = ds @ q                                                   # q holds scale already
    return dq.swapaxes(1, 2), dk.swapaxes(1, 2), dv.swapaxes(1, 2)


def attention_logits(cache):
    """s of `attention`, before the mask, computed anew          (B, H, T, T)"""
    q, k, *_ = cache                                              # q holds scale already
    return k @ q.swapaxes(-1, -2)


def largest_logits(cache):
    """Per head the largest attention logit of the batch, signed, as the softmax saw it          (H,)"""
    *_, largest, _, _ = cache
    return largest.max((0, 2, 3))


def causal_mask(time, dtype):
    """(T, T): 0 where the key (row) is not later than the query (column), −inf where it lies in the query's future."""
    return xp.tril(xp.full((time, time), -math.inf, dtype), -1)


# ── residual branches and the loss ───────────────────────────────────────────────────────────────────────────────────

def residual(x, branch, weight):
    """y = skip · x + amount · branch          x, branch, y (N, C)   weight a Branch"""
    y = branch * weight.amount if weight.amount != 1 else branch
    return y + (x * weight.skip if weight.skip != 1 else x), weight


def residual_backward(dy, weight):
    """dskip = skip · dy      dbranch = enter · dy.   What the branch makes of dbranch goes through `residual_join`."""
    return dy * weight.skip if weight.skip != 1 else dy, dy * weight.enter if weight.enter != 1 else dy


def residual_join(dskip, dx, weight):
    """dx = dskip + leave · dx: the two gradients meet where skip and branch parted. Written into dx."""
    dx = times(weight.leave, dx)
    dx += dskip
    return dx


def cross_entropy(logits, targets, alpha=1.0, factor=None):
    """loss = mean_N (log Σ_V e^z − z[target]), in nats,   z = α · logits          logits (N, V)   targets (N,) integers   loss ()"""
    z = alpha * logits if alpha != 1 else logits
    largest = z.max(-1, keepdims=True)
    p = xp.exp(z - largest)
    total = p.sum(-1, keepdims=True)
    p /= total
    rows = xp.arange(len(targets))
    loss = (xp.log(total[:, 0]) + largest[:, 0] - z[rows, targets]).mean()
    return loss, (p, targets, alpha / len(targets) if factor is None else factor)


def cross_entropy_backward(cache):
    """dlogits = factor · (softmax(z) − onehot(targets)),   factor = α/N unless u-μP sets it"""
    p, targets, factor = cache
    dlogits = p.copy()
    dlogits[xp.arange(len(targets)), targets] -= 1
    dlogits *= factor
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
