"""Optimizers: the update of one parameter as a pure formula written in place, and the object that holds their memory.

Every number here is a row of the resolved scaling table times the schedule's factor; no size appears.
"""
import math

from .backend import xp

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


# ── gradients ────────────────────────────────────────────────────────────────────────────────────────────────────────

def clip(grads, rows, most):
    """Scales all gradients by min(1, most / ‖g‖), in place, where ‖g‖ is the global norm of the *effective* gradients g/A.

    A parameter with multiplier A has a gradient A times that of the weight A·w which acts in the network. Only the norm of the
    latter is the same in all equivalent tables; with g itself, clipping would break the abc-symmetry.
    """
    squares = sum(xp.vdot(grads[row.name], grads[row.name]).real * row.mult**-2 for row in rows)
    factor = xp.minimum(1.0, most / xp.sqrt(squares))             # stays on the device; inf or nan spreads, as it should
    for g in grads.values():
        g *= factor


class Optimizer:
    """Joins parameters, their rows of the scaling table, and what each remembers from one step to the next."""

    def __init__(self, rows, params, momentum=0.0, nesterov=False, betas=(0.9, 0.99)):
        self.rows, self.momentum, self.nesterov, self.betas = rows, momentum, nesterov, betas
        self.state = {}                                           # "name.m", "name.v": what a checkpoint saves
        for row in rows:
            for moment in self.moments(row):
                self.state[f"{row.name}.{moment}"] = xp.zeros_like(params[row.name])
        self.scratch = xp.empty_like(max(params.values(), key=lambda w: w.size)).reshape(-1)   # the one temporary

    def moments(self, row):
        """The names of the arrays that the row's optimizer remembers."""
        return {"sgd": "m" if self.momentum else "", "adamw": "mv"}[row.optimizer]

    def step(self, params, grads, t, factor):
        """One update of all params, in place; t counts from 0, factor is the schedule's s_t."""
        for row in self.rows:
            w, g = params[row.name], grads[row.name]
            m, v = (self.state.get(f"{row.name}.{moment}") for moment in "mv")
            scratch = self.scratch[:w.size].reshape(w.shape)
            shrink(w, factor * row.shrink)
            if row.optimizer == "sgd":
                sgd(w, g, m, scratch, factor * row.lr, self.momentum, self.nesterov)
            else:
                adamw(w, g, m, v, scratch, factor * row.lr, self.betas, row.eps, t + 1)
