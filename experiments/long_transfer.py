"""Claim: training ten times as long, μP's best learning rate still stays, and SP's still moves.

    python experiments/long_transfer.py --jobs 2

The grid of lr_transfer.py at widths 64 to 256, with 3,000 steps instead of 300; one seed. Refuted
by: from width 64 to 256 a drift of more than half an octave under μP, or of less than one under SP.

The rival is SP with its learning rate divided by the width: it wins if its loss at width 256, with
the lr tuned at width 64, is as good as μP's. Longer training is where theory sees it fall behind,
since its embedding and its biases learn ever more slowly.
"""
import transfer  # first: it sets the path
import tuned_small
from tinymup.lab import optimum, plot
from tinymup.lab.config import Config

STEPS, SEED = 3000, 0
# Exponents of the learning rates: around the optima of 300 steps, and lower, since longer training
# prefers a lower lr. SP keeps the lr that may be the best at width 64.
LRS = {("mup", 64): range(-10, -5), ("mup", 128): range(-10, -5), ("sp", 128): range(-10, -6),
       ("mup", 256): range(-10, -5), ("sp", 256): range(-11, -7)}


def grids():
    """The grids of runs, small widths first. At width 64, the base, SP is μP."""
    grids = [(Config(param=param, steps=STEPS),
              {"width": [width], "lr": [2.0**e for e in exponents], "seed": [SEED]})
             for (param, width), exponents in LRS.items()]
    return [(Config(param="sp", steps=STEPS), grids[0][1]), *grids]


def verdict(found):
    """What the drifts and the losses at the largest width say about claim and rival."""
    moved = {param: optimum.movement(by_width).octaves for param, by_width in found.items()}
    wrong = {"mup": abs(moved["mup"]) > 0.5, "sp": moved["sp"] > -1}
    against = [f"{param}'s best lr moves by {moved[param]:+.2f}" for param in wrong if wrong[param]]
    return "; ".join(["refuted", *against]) if against else "not refuted"


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        for count in range(2, len(grids()) + 1):       # the CSV holds the grids that are finished
            transfer.train("long_transfer", grids()[:count], flags)
    found = optimum.curves(transfer.read("long_transfer"))[1]
    rules = {"SP": found["sp"], tuned_small.PER_WIDTH: found["sp"], "μP": found["mup"]}
    print(f"{optimum.report('width', found)}\n\n{tuned_small.table(rules)}\n{verdict(found)}")
    figure, axes = plot.panels(2)
    plot.draw_losses(axes, "width", found)
    plot.save(figure, transfer.FIGURES / "long_transfer.png",
              f"{STEPS:,} steps of AdamW on Python source: one seed")
