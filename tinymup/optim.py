"""Optimizers: the update of one parameter as a pure formula written in place, and the object that holds their memory.

Every number here is a row of the resolved scaling table times the schedule's factor; no size appears.
"""
import math

from .backend import xp
from .orthogonalize import COEFFICIENTS, newton_schulz

# ── schedules ────────────────────────────────────────────────────────────────────────────────────────────────────────

WSD_DECAY = 0.2   # the last fifth of a warm-up–stable–decay run


def schedule(kind, step, steps, warmup):
    """s_t ∈ (0, 1], the factor on every learning rate in step 0 … steps − 1: a linear warm-up, then `kind`.

    constant: 1.   linear: down to 0 in a line.   cosine: down to 0 in half a cosine.   wsd: 1, then linear over the last fifth.
    """
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - step) / (steps - warmup)                      # 1 after the warm-up, 1/(steps − warmup) in the last step
    return {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "wsd": min(1.0, left / WSD_DECAY)}[kind]


# ── updates of one parameter: arrays are changed in place; `scratch` has the parameter's shape ───────────────────────

def shrink(w, amount):
    """Weight decay: w ← (1 − amount) w"""
    if amount:
        w *= 1 - amount


def sgd(w, g, m, scratch, lr, momentum, nesterov):
    """m ← μ m + g,   w ← w − lr · m;   Nesterov: w ← w − lr · (g + μ m);   m is None without momentum: w ← w − lr · g"""
    if m is None:
        xp.multiply(g, lr, out=scratch)
    else:
        m *= momentum
        m += g
        if nesterov:
            xp.multiply(m, momentum, out=scratch)
            scratch += g
            scratch *= lr
        else:
            xp.multiply(m, lr, out=scratch)
    w -= scratch


def adamw(w, g, m, v, scratch, lr, betas, eps, t):
    """m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²,   w ← w − lr · m̂ / (√v̂ + ε),   m̂ = m/(1 − β₁ᵗ),   v̂ = v/(1 − β₂ᵗ)

    t counts from 1. (Kingma & Ba 2015, arXiv:1412.6980; decay apart from the gradient: Loshchilov & Hutter 2019, arXiv:1711.05101.)
    """
    beta1, beta2 = betas
    xp.subtract(g, m, out=scratch)
    scratch *= 1 - beta1
    m += scratch                                                  # m + (1 − β₁)(g − m)
    xp.multiply(g, g, out=scratch)
    scratch -= v
    scratch *= 1 - beta2
    v += scratch
    correction = math.sqrt(1 - beta2**t)                          # √v̂ = √v / correction, taken out of the fraction
    xp.sqrt(v, out=scratch)
    scratch += eps * correction
    xp.divide(m, scratch, out=scratch)
    scratch *= lr * correction / (1 - beta1**t)
    w -= scratch


def muon(w, g, m, scratch, lr, momentum, nesterov, form, newton_schulz_steps, coefficients, heads):
    """ema: m ← μ m + (1 − μ) g,   u = m, Nesterov: μ m + (1 − μ) g.      sum: m ← μ m + g,   u = m, Nesterov: μ m + g.
    w ← w − lr · O,   O = orthogonal factor of u by Newton–Schulz          (Jordan et al. 2024, kellerjordan.github.io/posts/muon)

    lr is in units of spectral norm: O's singular values are all near 1. The two forms differ in u by the factor 1 − μ, which O does
    not feel. Several heads: O of each block of columns, w (I, heads · D) as heads matrices (I, D).
    """
    share = 1 - momentum if form == "ema" else 1.0
    m *= momentum
    m += xp.multiply(g, share, out=scratch)
    direction = m
    if nesterov:
        scratch += momentum * m
        direction = scratch
    blocks = direction.reshape(w.shape[0], heads, -1).swapaxes(0, 1)
    o = newton_schulz(blocks, newton_schulz_steps, COEFFICIENTS[coefficients]).swapaxes(0, 1).reshape(w.shape)
    o *= lr
    w -= o


def qk_clip(params, rows, largest, threshold):
    """W_q, W_k ← √γ_h W_q, √γ_h W_k per head h,   γ_h = min(1, τ/S_h)          (MuonClip: Kimi K2 2025, arXiv:2507.20534, Algorithm 1)

    largest: block prefix → S_h (H,), the largest attention logit of this step's forward, signed, as the softmax saw it. The logits of a
    head are bilinear in W_q and W_k, biases included, so each of them becomes γ_h times what it was. Called after the update.
    """
    for prefix, s in largest.items():
        root = xp.sqrt(threshold / xp.maximum(s, threshold))      # 1 where the logits are small or negative
        for row in rows:
            if row.name.startswith((prefix + "query", prefix + "key")):
                w = params[row.name]
                w *= xp.repeat(root, w.shape[-1] // len(root))


# ── gradients ────────────────────────────────────────────────────────────────────────────────────────────────────────

def clip(grads, rows, most):
    """Scales all gradients by min(1, most / ‖g‖), in place, where ‖g‖ is the global norm of the *effective* gradients g/A.

    A parameter with multiplier A has a gradient A times that of the weight A·w which acts in the network. Only the norm of the
    latter is the same in all equivalent tables; with g itself, clipping would break the abc-symmetry. (u-μP's gradients carry factors
    of their own, `unit_scaling`: there ‖g‖ is a scale to clip at, not the norm of a gradient.)
    """
    squares = sum(xp.vdot(grads[row.name], grads[row.name]).real * row.mult**-2 for row in rows)
    factor = xp.minimum(1.0, most / xp.sqrt(squares))             # a device scalar: nothing waits for it
    for g in grads.values():
        g *= factor


class Optimizer:
    """Joins parameters, their rows of the scaling table, and what each remembers from one step to the next.

    config gives what no table scales: momentum, nesterov, betas, and for Muon momentum_form, newton_schulz_steps, coefficients.
    """

    def __init__(self, rows, params, config):
        self.rows, self.config = rows, config
        self.state = {}                                           # "name.m", "name.v": what a checkpoint saves
        for row in rows:
            for moment in self.moments(row):
                self.state[f"{row.name}.{moment}"] = xp.zeros_like(params[row.name])
        self.scratch = xp.empty_like(max(params.values(), key=lambda w: w.size)).reshape(-1)   # the one temporary

    def moments(self, row):
        """The names of the arrays that the row's optimizer remembers."""
        return {"sgd": "m" if self.config.momentum else "", "adamw": "mv", "muon": "m"}[row.optimizer]

    def step(self, params, grads, t, factor):
        """One update of all params, in place; t counts from 0, factor is the schedule's s_t."""
        c = self.config
        for row in self.rows:
            w, g = params[row.name], grads[row.name]
            m, v = (self.state.get(f"{row.name}.{moment}") for moment in "mv")
            scratch, lr = self.scratch[:w.size].reshape(w.shape), factor * row.lr
            shrink(w, factor * row.shrink)
            if row.optimizer == "sgd":
                sgd(w, g, m, scratch, lr, c.momentum, c.nesterov)
            elif row.optimizer == "adamw":
                adamw(w, g, m, v, scratch, lr, c.betas, row.eps, t + 1)
            else:
                muon(w, g, m, scratch, lr * row.shape_factor, c.momentum, c.nesterov, c.momentum_form, c.newton_schulz_steps,
                     c.coefficients, row.heads)
