"""Coordinate check: whether activations and their changes keep their size as the width grows.

It tests a parametrization as a gradient check tests a backward pass (Yang et al. 2022,
arXiv:2203.03466, App. D.1). Small networks of several widths take the first steps of a training
run, warm-up included, on one batch. It measures the RMS of every activation x and the spectral norm
of every effective matrix W = A w, and the same of their changes Δx and ΔW since initialisation. In
a log-log plot against width, a quantity that is proportional to width^s has slope s. Under μP, x
and Δx must have slope 0, and ΔW that of √(fan_out/fan_in), which is the spectral condition.

ΔW is the sum of all updates so far. Single updates mislead under SGD, whose steps are proportional
to the gradient: if the learning rate is so large that the loss oscillates, narrow and wide networks
have their large gradients in different steps.
"""
import math
from dataclasses import replace
from typing import NamedTuple

import numpy

from ..backend import to_device, to_host
from . import data, run
from .config import complete

TOLERANCE = 0.25   # half of ½, the least by which a wrong exponent changes a slope


class Measurement(NamedTuple):
    """One quantity of one network at one step."""

    width: int
    seed: int
    step: int           # updates so far
    quantity: str       # x, Δx, W or ΔW
    name: str           # of the activation or parameter
    mean_abs: float     # of x and Δx; None for W and ΔW
    rms: float          # likewise
    spectral: float     # of W and ΔW, the largest singular value; None for x and Δx


def measure(config, corpus, widths, seeds, steps):
    """The `Measurement`s of a config at several widths and seeds, over steps updates."""
    configs = [complete(replace(config, width=w, seed=s)) for w in widths for s in seeds]
    return [m for c in configs for m in measure_one(c, corpus, steps)]


def measure_one(config, corpus, steps):
    """The `Measurement`s of one complete config."""
    network, params, optimizer, _ = run.start(config, corpus, None)
    batch = data.training_batch(corpus, config.seed, 0, config.batch, config.seq)
    ids, targets = map(to_device, batch)
    found, start = [], None

    def add(step, quantity, name, *numbers):
        found.append(Measurement(config.width, config.seed, step, quantity, name, *numbers))

    for step in range(steps + 1):
        seen, largest = {}, {}

        def watch(name, x):
            seen[name] = to_host(x).copy()
        _, grads = network.loss_and_gradients(params, ids, targets, watch, largest)
        weights = {row.name: row.mult * to_host(params[row.name]).astype(float)
                   for row in network.rows if len(row.shape) == 2}
        start = start or (seen, weights)
        for name, x in seen.items():
            add(step, "x", name, *sizes(x), None)
            if step:
                add(step, "Δx", name, *sizes(x - start[0][name]), None)
        for name, w in weights.items():
            add(step, "W", name, None, None, spectral_norm(w))
            if step:
                add(step, "ΔW", name, None, None, spectral_norm(w - start[1][name]))
        run.update(config, network, params, optimizer, grads, largest, step)
    return found


def sizes(x):
    """(mean |x|, √(mean x²))"""
    return float(numpy.abs(x).mean()), math.sqrt(numpy.square(x, dtype=float).mean())


def spectral_norm(w):
    """The largest singular value of a float64 matrix, from the smaller Gram matrix. Or NaN."""
    gram = w @ w.T if w.shape[0] < w.shape[1] else w.T @ w
    finite = numpy.isfinite(gram).all()                       # else eigvalsh does not converge
    return math.sqrt(max(0.0, numpy.linalg.eigvalsh(gram)[-1])) if finite else math.nan


class Slope(NamedTuple):
    """The slope of a quantity against width at one step, and its bounds, None if it has none."""

    step: int
    quantity: str
    name: str
    slope: float
    low: float
    high: float

    @property
    def passes(self):
        """Whether the slope lies within its bounds."""
        return self.low is None or self.low <= self.slope <= self.high


def slopes(measurements, expected):
    """The least-squares `Slope` of log2 size against log2 width, for every quantity.

    The size is the mean over seeds. The bounds are the `expected_slopes` ± TOLERANCE. W has none,
    because the norm of its random start follows other laws.
    """
    by_key = {}
    for m in measurements:
        value = m.spectral if m.rms is None else m.rms
        by_width = by_key.setdefault((m.step, m.quantity, m.name), {})
        by_width.setdefault(m.width, []).append(value)
    found = []
    for (step, quantity, name), by_width in by_key.items():
        with numpy.errstate(divide="ignore", invalid="ignore"):
            y = numpy.log2([numpy.mean(values) for values in by_width.values()])
        finite = numpy.isfinite(y).all()
        slope = float(numpy.polyfit(numpy.log2(list(by_width)), y, 1)[0]) if finite else math.nan
        low, high = expected.get((quantity, name), (0.0, 0.0))
        bounds = (None, None) if quantity == "W" else (low - TOLERANCE, high + TOLERANCE)
        found.append(Slope(step, quantity, name, slope, *bounds))
    return found


def expected_slopes(narrow, wide):
    """{(quantity, name): (lowest, highest) slope} by theory, where it is not 0, for two networks.

    Logits may have any slope from −½ to 0: they add an aligned part, whose size is constant, and a
    random part, which shrinks like 1/√width. At initialisation there is the random part alone. The
    changes of logits have one too, since other tokens' gradients interfere; where the width is near
    the vocabulary it is as large. Attention logits have these parts only if the heads grow.

    ΔW of a matrix changes like √(fan_out/fan_in). Under SGD a matrix without a width, such as the
    MLP's embedding, may have −½ to 0: like logits, its gradient is a sum over the width with a
    random and an aligned part.
    """
    octaves = math.log2(wide.architecture.width / narrow.architecture.width)
    logits = {"logits", *(row.spec.logits for row in wide.rows)}
    found = {(quantity, name): (-0.5, 0.0) for quantity in ("x", "Δx") for name in logits}
    for a, b in zip(narrow.rows, wide.rows):
        if len(a.shape) == 2:
            fan_in, fan_out = (math.log2(y / x) / octaves for x, y in zip(a.shape, b.shape))
            slope = (fan_out - fan_in) / 2
            random = a.role == "scalar" and a.optimizer == "sgd"
            found["ΔW", a.name] = (slope - random / 2, slope)
    return found


def report(found):
    """A table of slopes: a row per quantity, a column per step, and ! after one out of bounds."""
    steps, rows = sorted({s.step for s in found}), {}
    for s in found:
        rows.setdefault((s.quantity, s.name), {})[s.step] = s
    text = ["slope against width       " + "".join(f"{'step ' + str(t):>9}" for t in steps)]
    order = ["x", "Δx", "W", "ΔW"]
    for (quantity, name), at in sorted(rows.items(), key=lambda row: order.index(row[0][0])):
        cells = (f"{at[t].slope:>8.2f}{' ' if at[t].passes else '!'}" if t in at else " " * 9
                 for t in steps)
        text.append(f"{quantity:2} {name:23}" + "".join(cells))
    failing = sum(not s.passes for s in found)
    text.append(f"FAIL: {failing} of {len(found)} slopes are out of bounds, marked !"
                if failing else "PASS: all slopes are in bounds")
    return "\n".join(text)
