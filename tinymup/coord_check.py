"""Coordinate check: do activations and their updates keep their size as the network grows?

What a gradient check is to a backward pass, this is to a parametrization (Yang et al. 2022, arXiv:2203.03466, App. D.1). Small networks
of several widths take a few steps on one batch. In each, for every activation x_t and its change Δx_t since step 0, the mean of |x| and the
root mean square are taken, and for every matrix in effect, W = A w, the spectral norm of W and of its last update ΔW. A quantity that
goes like width^s has slope s in a log-log plot. Under μP every slope is what the spectral condition says: 0 for activations, and for a matrix
that of √(fan_out/fan_in).
"""
import math
from dataclasses import replace
from typing import NamedTuple

import numpy

from . import data, ops, optim
from .backend import keep_freed_memory, to_device, to_host, use
from .initialize import initialize
from .network import build, complete

TOLERANCE = 0.25   # of a slope: half of ½, the smallest slope that a wrong exponent makes


class Measurement(NamedTuple):
    """One row of the CSV. step counts updates: 0 is initialisation. quantity: x, Δx, W or ΔW."""

    width: int
    seed: int
    step: int
    quantity: str
    name: str
    mean_abs: float     # of x and Δx
    rms: float          # of x and Δx
    spectral: float     # of W and ΔW: the largest singular value


def measure(config, corpus, widths, seeds, steps):
    """`Measurement`s of a config at several widths and seeds, over so many updates on one batch."""
    use(config.device)
    keep_freed_memory()
    return [m for width in widths for seed in seeds for m in measure_one(complete(replace(config, width=width, seed=seed)), corpus, steps)]


def measure_one(config, corpus, steps):
    """The same for one network."""
    network = build(config)
    params = initialize(network.rows, config.seed, config.dtype)
    optimizer = optim.Optimizer(network.rows, params, config)
    ids, targets = map(to_device, data.training_batch(corpus, config.seed, 0, config.batch, config.seq))
    matrices = [row for row in network.rows if len(row.shape) == 2]
    measurements, start, before = [], {}, None

    def effective_weights():
        return {row.name: row.mult * to_host(params[row.name]).astype(float) for row in matrices}

    for step in range(steps + 1):
        seen = {}

        def watch(name, x):
            seen[name] = to_host(ops.attention_logits(x) if name.endswith("attention_logits") else x).copy()

        _, grads = network.loss_and_gradients(params, ids, targets, watch)
        start = start or seen
        for name, x in seen.items():
            measurements.append(Measurement(config.width, config.seed, step, "x", name, *sizes(x), None))
            if step:
                measurements.append(Measurement(config.width, config.seed, step, "Δx", name, *sizes(x - start[name]), None))
        weights = effective_weights()
        for name, w in weights.items():
            measurements.append(Measurement(config.width, config.seed, step, "W", name, None, None, spectral_norm(w)))
            if step:
                measurements.append(Measurement(config.width, config.seed, step, "ΔW", name, None, None, spectral_norm(w - before[name])))
        before = weights
        optimizer.step(params, grads, step, 1.0)
    return measurements


def sizes(x):
    """(mean |x|, √(mean x²))"""
    return float(numpy.abs(x).mean()), math.sqrt(numpy.square(x, dtype=float).mean())


def spectral_norm(w):
    """The largest singular value of a float64 matrix, from the smaller of its two Gram matrices: some times as fast as an SVD."""
    gram = w @ w.T if w.shape[0] < w.shape[1] else w.T @ w
    return math.sqrt(max(0.0, numpy.linalg.eigvalsh(gram)[-1]))


class Slope(NamedTuple):
    """How a quantity goes with width, and how it should. low and high are its `bounds`; None: any slope will do."""

    step: int
    quantity: str
    name: str
    slope: float
    low: float
    high: float

    @property
    def passes(self):
        """Whether the slope lies within its bounds."""
        return (self.low is None or self.slope >= self.low) and (self.high is None or self.slope <= self.high)


def slopes(measurements, expected):
    """The least-squares slope of log2 size (RMS, or spectral norm; mean over seeds) against log2 width, of every quantity.

    expected: the slope a matrix should have, by name; see `expected_slopes`.
    """
    by_key = {}
    for m in measurements:
        value = m.spectral if m.rms is None else m.rms
        by_key.setdefault((m.step, m.quantity, m.name), {}).setdefault(m.width, []).append(value)
    found = []
    for (step, quantity, name), by_width in by_key.items():
        x = numpy.log2(list(by_width))
        with numpy.errstate(divide="ignore", invalid="ignore"):
            y = numpy.log2([numpy.mean(values) for values in by_width.values()])
        slope = float(numpy.polyfit(x, y, 1)[0]) if numpy.isfinite(y).all() else math.nan
        last = step == max(key[0] for key in by_key)
        found.append(Slope(step, quantity, name, slope, *bounds(quantity, name, expected[name] if quantity == "ΔW" else 0.0, last)))
    return found


def bounds(quantity, name, expected, last):
    """(low, high) of a slope: the expected one ± TOLERANCE, with the exceptions that the theory allows.

    Logits, and attention logits where the head dimension grows, are at initialisation sums of random terms that shrink like 1/√width,
    and the first steps only begin to align them: they have no lower bound before the last step. A weight is its random start plus its
    updates, and the start's norm follows other laws: W has no bounds, ΔW has.
    """
    if quantity == "W":
        return None, None
    if name.endswith("logits") and (quantity == "x" or not last):
        return None, TOLERANCE
    return expected - TOLERANCE, expected + TOLERANCE


def expected_slopes(narrow, wide):
    """The slope of √(fan_out/fan_in) for every matrix, from the rows of two networks of different width."""
    def slope(a, b):
        octaves = math.log2(wide_width / narrow_width)
        return 0.5 * (math.log2(b[1] / a[1]) - math.log2(b[0] / a[0])) / octaves
    narrow_width, wide_width = narrow.architecture.width, wide.architecture.width
    return {a.name: slope(a.shape, b.shape) for a, b in zip(narrow.rows, wide.rows) if len(a.shape) == 2}


def check(config, corpus, widths, seeds=(0, 1, 2), steps=8):
    """(measurements, slopes, whether all slopes pass)"""
    measurements = measure(config, corpus, widths, seeds, steps)
    narrow, wide = (build(complete(replace(config, width=w))) for w in (min(widths), max(widths)))
    found = slopes(measurements, expected_slopes(narrow, wide))
    return measurements, found, all(slope.passes for slope in found)


def report(found):
    """A table of slopes, a row per quantity and a column per step; ! marks one out of bounds."""
    steps = sorted({s.step for s in found})
    rows = {}
    for s in found:
        rows.setdefault((s.quantity, s.name), {})[s.step] = s
    text = ["slope against width   " + "".join(f"{'step ' + str(t):>9}" for t in steps)]
    for (quantity, name), at in sorted(rows.items(), key=lambda item: ["x", "Δx", "W", "ΔW"].index(item[0][0])):
        text.append(f"{quantity:2} {name:19}" + "".join(f"{at[t].slope:>8.2f}{' ' if at[t].passes else '!'}" if t in at else " " * 9 for t in steps))
    failing = [s for s in found if not s.passes]
    text.append(f"FAIL: {len(failing)} of {len(found)} slopes are out of bounds, marked !" if failing else "PASS: all slopes are in bounds")
    return "\n".join(text)
