"""Claim: with ten times as much training, too, μP's best learning rate stays and SP's moves.

    python experiments/long_transfer.py --jobs 2

The widths 64 to 256 of lr_transfer.py, with 3,000 steps instead of 300. Refuted by: from width 64
to 256 a drift of more than half an octave under μP, or of less than one under SP.

The drifts are of one seed. Three seeds have the learning rates around the best at width 64, and at
the other widths those to which this best one is carried.

The rival is SP with its learning rate divided by the width: it wins if its loss at width 256, with
the lr tuned at width 64, is as good as μP's. Longer training is where theory sees it fall behind,
since its embedding learns ever more slowly.
"""
import transfer  # first: it sets the path
import tuned_small
from tinymup.lab import optimum, plot
from tinymup.lab.config import Config

STEPS, SEEDS = 3000, [0, 1, 2]
# Exponents of the learning rates: around the optima of 300 steps, and lower, since longer training
# prefers a lower lr. At width 64, the base, SP is μP.
LRS = {("sp", 64): range(-10, -5), ("mup", 64): range(-10, -5), ("mup", 128): range(-10, -5),
       ("sp", 128): range(-10, -6), ("mup", 256): range(-10, -5), ("sp", 256): range(-11, -7)}
# What the other seeds have: the best lr of seed 0 and its neighbours at width 64, the lr that this
# one means at the other widths, for SP divided by the width.
OTHERS = {("sp", 64): (-8, -7, -6), ("mup", 64): (-8, -7, -6), ("mup", 128): (-7,),
          ("sp", 128): (-8,), ("mup", 256): (-7,), ("sp", 256): (-9,)}


def grids():
    """The grids of runs, small widths first."""
    return [(Config(param=param, steps=STEPS),
             {"width": [width], "lr": [2.0**e for e in exponents], "seed": seeds})
            for lrs, seeds in ((LRS, SEEDS[:1]), (OTHERS, SEEDS[1:]))
            for (param, width), exponents in lrs.items()]


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        for count in range(2, len(grids()) + 1):       # the CSV holds the grids that are finished
            transfer.train("long_transfer", grids()[:count], flags)
    found = optimum.curves(transfer.read("long_transfer"))[1]
    print(f"{optimum.report('width', found)}\n\n{tuned_small.beside(found['sp'], found['mup'])}")
    figure, axes = plot.panels(2)
    plot.draw_losses(axes, "width", found)
    plot.save(figure, transfer.FIGURES / "long_transfer.png",
              f"{STEPS:,} steps of AdamW on Python source: one seed; {len(SEEDS)} seeds around the "
              "best lr of width 64 and at the lr carried from it")
