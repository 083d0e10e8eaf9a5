"""Optimizers: each update as a formula on arrays, and the object that keeps the moments.

No size appears in this file: learning rates are those of the resolved table, times the schedule's
factor. Read next: network.py, which joins the parts."""
import math
from typing import NamedTuple

from .backend import blocks, fused, xp
from .orthogonalize import COEFFICIENTS, newton_schulz


class Settings(NamedTuple):
    """What an optimizer needs that no table scales: it is the same at every size."""
    momentum: float = 0.0             # of SGD and Muon
    nesterov: bool = False
    momentum_form: str = "ema"        # of Muon: ema or sum
    coefficients: str = "keller"      # of Muon: a key of `COEFFICIENTS`
    newton_schulz_steps: int = None   # None: as many as is customary for the coefficients
    betas: tuple = (0.9, 0.99)        # of AdamW


def schedule(kind, step, steps, warmup):
    """s_t ∈ (0, 1], the factor on every learning rate in step 0 … steps − 1.
    It rises from 1/warmup to 1. Then "constant" stays at 1, "linear" falls to 1/(steps − warmup),
    "cosine" falls along half a period, "wsd" (warmup-stable-decay) linearly in the last fifth."""
    if step < warmup:
        return (step + 1) / warmup
    left = (steps - step) / (steps - warmup)
    return {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2,
            "wsd": min(1.0, left / 0.2)}[kind]


MUON = Settings(momentum=0.95, nesterov=True)   # Jordan's, see `muon`

# The updates write into all of their arrays but g. u and scratch are work space.
@fused
def momentum(m, g, u, *, mu, share, of_m, of_g):
    """m ← μ m + share · g,   u ← of_m · m + of_g · share · g
    Heavy ball has of_m = 1 and of_g = 0, so u = m. Nesterov has of_m = μ and of_g = 1, so u is what
    m would be after one more step with the same gradient."""
    m *= mu
    xp.multiply(g, share, out=u)
    m += u
    u *= of_g
    u += of_m * m

def momentum_numbers(settings):
    """The numbers that `momentum` takes. The ema form of Muon has share = 1 − μ, the sum form 1."""
    mu = settings.momentum
    return {"mu": mu, "share": 1 - mu if settings.momentum_form == "ema" else 1.0,
            "of_m": mu if settings.nesterov else 1.0, "of_g": 1.0 if settings.nesterov else 0.0}

def sgd(w, g, m, u, lr, settings):
    """w ← w − lr · u, with u = g if m is None, else the momentum of g in the sum form."""
    if m is not None:
        momentum(m, g, u, **momentum_numbers(settings._replace(momentum_form="sum")))
    w -= xp.multiply(g if m is None else u, lr, out=u)


@fused
def adamw(w, g, m, v, scratch, *, lr, eps, share1, share2):
    """m ← m + (1 − β₁)(g − m),   v ← v + (1 − β₂)(g² − v),   w ← w − lr · m / (√v + ε)
    share1 = 1 − β₁, share2 = 1 − β₂. `bias_corrected` gives lr and eps. (Kingma & Ba 2015,
    arXiv:1412.6980. With decay apart from the step: Loshchilov & Hutter 2019, arXiv:1711.05101.)"""
    xp.subtract(g, m, out=scratch)
    scratch *= share1
    m += scratch
    xp.multiply(g, g, out=scratch)
    scratch -= v
    scratch *= share2
    v += scratch
    xp.sqrt(v, out=scratch)
    scratch += eps
    xp.divide(m, scratch, out=scratch)
    scratch *= lr
    w -= scratch

def bias_corrected(lr, eps, betas, t):
    """(lr, ε) that make step t ≥ 1 lr · m̂/(√v̂ + ε),   m̂ = m/(1 − β₁ᵗ),   v̂ = v/(1 − β₂ᵗ)"""
    root = math.sqrt(1 - betas[1]**t)
    return lr * root / (1 - betas[0]**t), eps * root


def muon(weights, grads, momenta, lrs, settings=MUON, heads=1):
    """w ← w − lr · O for a list of matrices of one shape; O is U Vᵀ of the momentum U diag(s) Vᵀ.
    Newton–Schulz makes the singular values of O nearly 1, so lr is the spectral norm of the step.
    If heads > 1, each block of columns (I, D) of w (I, heads · D) has its own O.
    (Jordan et al. 2024, kellerjordan.github.io/posts/muon.)"""
    count, (fan_in, fan_out) = len(weights), weights[0].shape
    u = xp.empty((count, fan_in, fan_out), weights[0].dtype)
    for i, (m, g) in enumerate(zip(momenta, grads)):
        momentum(m, g, u[i], **momentum_numbers(settings))
    matrices = u.reshape(count, fan_in, heads, -1).swapaxes(1, 2) if heads > 1 else u     # a view
    for i in blocks(matrices):
        matrices[i] = newton_schulz(
            matrices[i], settings.newton_schulz_steps, COEFFICIENTS[settings.coefficients])
    for w, o, lr in zip(weights, u, lrs):
        w -= xp.multiply(o, lr, out=o)


def qk_clip(params, rows, largest, threshold):
    """W_q, W_k ← √γ_h W_q, √γ_h W_k for each head h after an update,   γ_h = min(1, threshold/S_h)
    largest: name of the attention logits → S_h (H,), the largest of this step. Logits are linear in
    W_q and in W_k, so γ_h multiplies them. (MuonClip, Kimi K2 2025, arXiv:2507.20534.)"""
    for row in rows:
        if row.spec.logits in largest:
            s = largest[row.spec.logits]
            root = xp.sqrt(threshold / xp.maximum(s, threshold))  # 1 for small or negative logits
            w = params[row.name]
            w *= xp.repeat(root, w.shape[-1] // len(root))

def clip(grads, rows, most):
    """g ← min(1, most / norm) · g for all gradients g, with the norm of all g/A together.
    g/A is the gradient of A·w, on which tables that describe the same training agree. u-μP's
    gradients are scaled ones, so under u-μP `most` means something else than elsewhere."""
    squares = sum(xp.vdot(grads[row.name], grads[row.name]).real * row.mult**-2 for row in rows)
    factor = xp.minimum(1.0, most / xp.sqrt(squares))             # stays on the device
    for g in grads.values():
        g *= factor


class Optimizer:
    """Updates parameters as their rows say, and keeps the moments from one step to the next.
    settings None: `MUON` if Muon updates a row, else plain SGD or AdamW."""
    def __init__(self, rows, params, settings=None):
        default = MUON if any(row.optimizer == "muon" for row in rows) else Settings()
        self.rows, self.settings = rows, settings or default
        moments = {"sgd": "m" if self.settings.momentum else "", "adamw": "mv", "muon": "m"}
        self.state = {f"{row.name}.{moment}": xp.zeros_like(params[row.name])   # for checkpoints
                      for row in rows for moment in moments[row.optimizer]}
        self.scratch = xp.empty_like(max(params.values(), key=lambda w: w.size)).reshape(-1)

    def step(self, params, grads, t, factor=1.0):
        """Updates params in place. t counts from 0; factor is the schedule's s_t."""
        settings, stacks = self.settings, {}
        for row in self.rows:
            w, g, lr = params[row.name], grads[row.name], factor * row.lr
            m, v = self.state.get(f"{row.name}.m"), self.state.get(f"{row.name}.v")
            scratch = self.scratch[:w.size].reshape(w.shape)
            if row.shrink:
                w *= 1 - factor * row.shrink                      # weight decay
            if row.optimizer == "muon":
                stack = stacks.setdefault((row.shape, row.heads), [])
                stack.append((w, g, m, lr * row.shape_factor))
            elif row.optimizer == "adamw":
                lr, eps = bias_corrected(lr, row.eps, settings.betas, t + 1)
                adamw(w, g, m, v, scratch, lr=lr, eps=eps,
                      share1=1 - settings.betas[0], share2=1 - settings.betas[1])
            else:
                sgd(w, g, m, scratch, lr, settings)
        for (_, heads), stack in stacks.items():
            muon(*zip(*stack), settings, heads)
