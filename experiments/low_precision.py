"""Claim: u-μP trains in FP8 as it is; its rivals, SP and μP, need a loss scale and have to tune it.

    python experiments/low_precision.py --jobs 2

Operands of the products with the matrices query, key, value and up ("noncritical"), or with all
matrices, are rounded to a simulated format, in forward and backward pass. The strongest rival is SP
or μP with one constant factor on all gradients, the loss scale. Gradients are divided by it before
the optimizer, so Adam's ε needs no change, and a power of two changes nothing but what FP8 loses.
u-μP has such factors built in. All that it can win over a tuned scale is that nothing is left to
tune. For each family we measure how many octaves of scale cost at most 0.02 nats, at
three widths, at 8 blocks, and in a run ten times as long. A wide range that stays put is as good as
no number at all.

Refuted by: a mean gap of u-μP at scale 1 above 0.02 nats in any setting, with either rounding. (One
seed was to decide this at first; it had 0.033 at width 128.) The rival wins if SP or μP with one
scale, 2^16, loses at most 0.02 in every setting. Separately, BF16 costs nothing: refuted by a gap
above 0.02 for any family, one seed.

A gap is the loss in the format less that in float32 with the same seed, at the lr that is best in
float32 for this setting and seed 0. Runs that differ by a power of two alone end up to 0.06 nats
apart. So what the verdicts need, u-μP at scale 1 and its rivals at 2^16, is the mean of three
seeds; the sweeps over scales have one. SP and μP are one network at width 64 and are trained once.
"""
import math

import transfer  # first: it sets the path
from low_precision_tables import (
    FORMATS, NAME, ROUNDED, SEEDS, SETTINGS, STATED, best_lr, draw, families, report, tables)
from tinymup.lab import sweep
from tinymup.lab.config import Config


def exponents(param, setting):
    """log2 of the learning rates: the float32 optimum of short runs of 2 blocks, its neighbours."""
    best = {"sp": -1 - int(math.log2(setting[0])), "mup": -7, "umup": 0}[param]
    more = {("sp", (128, 2, 300)): [best + 2], ("sp", (256, 2, 300)): [best + 2],
            ("umup", (64, 8, 300)): [best + 2], ("umup", (64, 2, 3000)): [best - 2]}
    return sorted([best - 1, best, best + 1, *more.get((param, setting), [])])  # the best is inside


def plain(setting):
    """Grids without a loss scale. The long, deep and wide settings have fewer formats."""
    for param in families(setting):
        lrs = [2.0**e for e in exponents(param, setting)]
        small = setting in ((64, 2, 300), (128, 2, 300))
        formats = FORMATS if small else FORMATS[::3] if setting[0] == 256 else FORMATS[:1]
        yield config(param, setting), {"lr": lrs, "matmul_format": formats}


def scaled(setting, losses):
    """Grids at the float32 optimum: the wider formats, and FP8 with each loss scale."""
    for param in families(setting):
        scales = [2.0**e for e in SETTINGS[setting] if e >= 0 or param == "umup"]
        base = config(param, setting, lr=2.0**best_lr(losses[setting, param]))
        yield base, {"matmul_format": FORMATS[1:3]}
        yield base, {"matmul_format": FORMATS[-1:], "rounded": list(ROUNDED), "loss_scale": scales}


def repeated(setting, losses):
    """Grids of the other seeds: float32, and FP8 at the scale that the verdict is about."""
    for param in families(setting):
        base = config(param, setting, lr=2.0**best_lr(losses[setting, param]))
        yield base, {"seed": SEEDS[1:]}
        yield base, {"matmul_format": FORMATS[-1:], "rounded": list(ROUNDED),
                     "loss_scale": [2.0**STATED[param]], "seed": SEEDS[1:]}


def config(param, setting, **fields):
    """The incomplete config of a family in a setting."""
    width, depth, steps = setting
    return Config(param=param, width=width, depth=depth, steps=steps, seed=SEEDS[0], **fields)


def train(flags):
    """Trains setting by setting, since the lr of the scaled runs is that of the plain ones."""
    grids = []
    for setting in SETTINGS:
        grids += (now := list(plain(setting)))
        losses = tables(trained(now, flags))
        grids += (now := [*scaled(setting, losses), *repeated(setting, losses)])
        trained(now, flags)
    transfer.train(NAME, grids, flags)           # writes the CSV, and finds all runs done


def trained(grids, flags):
    """The records of all configs of the grids."""
    configs = dict.fromkeys(c for base, axes in grids for c in sweep.grid(base, axes))
    return transfer.finished_runs(NAME, list(configs), flags)[0]


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        train(flags)
    records = transfer.read(NAME)
    print(report(records))
    draw(tables(records))
