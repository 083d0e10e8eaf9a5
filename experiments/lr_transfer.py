"""Claim: under μP the best learning rate stays while the width grows eightfold; under SP it moves.

    python experiments/lr_transfer.py --jobs 2

Refuted by: from width 64 to 512, a drift of more than half an octave under μP, or of less than one
octave under SP. The two are the same network at width 64, the base. Each width trains from the same
seeds and sees the same batches.
"""
from transfer import arguments, read, show, train  # noqa: I001 (first: it sets the path)

from tinymup.lab.config import Config

SEEDS = [0, 1, 2]
# A grid around the optima of all widths. Width 512 is expensive and has a grid around its own.
LRS = {"sp": [2.0**e for e in range(-11, -4)], "mup": [2.0**e for e in range(-9, -3)]}
LRS_512 = {"sp": [2.0**e for e in range(-11, -6)], "mup": [2.0**e for e in range(-9, -4)]}

GRIDS = [(Config(param=param), {"width": widths, "lr": lrs[param], "seed": SEEDS})
         for widths, lrs in [([512], LRS_512), ([64, 128, 256], LRS)] for param in LRS]
TITLE = ("Transformer on Python source, 300 steps of AdamW: "
         f"mean and range of {len(SEEDS)} seeds")

if __name__ == "__main__":
    flags = arguments(__doc__)
    if not flags.redraw:
        train("lr_transfer", GRIDS, flags.jobs)
    show("lr_transfer", TITLE, read("lr_transfer"))
