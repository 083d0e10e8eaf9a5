"""Claim: under μP the best learning rate stays while the width grows 16-fold; under SP it moves.

    python experiments/lr_transfer.py --jobs 2

Refuted by: from width 64 to 1024, a drift of more than half an octave under μP, or of less than one
octave under SP. The two are the same network at width 64, the base. Each width trains from the same
seeds and sees the same batches.

The rival is SP with its learning rate divided by the width. It needs no run of its own: it is SP's
curve, read one octave further left for each doubling of the width. It wins if its loss with the lr
tuned at width 64 is as good as μP's at width 1024. A second figure, tuned_small.png, shows that.
"""
from transfer import arguments, read, show, train  # noqa: I001 (first: it sets the path)

import tuned_small
from tinymup.lab.config import Config
from tinymup.lab.optimum import curves

SEEDS = [0, 1, 2]
# Exponents of the learning rates: many for the small widths, a few near the predicted optimum for
# the large ones. SP keeps 2^-7, the lr that is tuned at width 64.
SMALL = {"sp": range(-11, -4), "mup": range(-9, -3)}
LARGE = {512: {"sp": range(-11, -6), "mup": range(-9, -4)},
         1024: {"sp": [-12, -11, -10, -7], "mup": range(-8, -5)}}


def grids(seeds):
    """The grids of runs, as `transfer.train` takes them."""
    return [(Config(param=param), {"width": widths, "lr": [2.0**e for e in exponents[param]],
                                   "seed": seeds})
            for widths, exponents in [*(([w], LARGE[w]) for w in LARGE), ([64, 128, 256], SMALL)]
            for param in exponents]


TITLE = ("Transformer on Python source, 300 steps of AdamW: "
         f"mean and range of {len(SEEDS)} seeds")

if __name__ == "__main__":
    flags = arguments(__doc__)
    if not flags.redraw:
        train("lr_transfer", grids(SEEDS), flags)
    records = read("lr_transfer")
    show("lr_transfer", TITLE, records)
    print("\n" + tuned_small.draw())
    found = curves(records)[1]
    print(tuned_small.verdict_on_transfer({"SP": found["sp"], "μP": found["mup"]}))
