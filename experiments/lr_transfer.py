"""Claim: under μP the best learning rate stays where it is as the network grows eightfold; under SP it moves.

Refuted by: a drift of μP's optimum above half an octave from width 64 to 512, or of SP's below one octave.
"""
from transfer import arguments, show, train  # noqa: I001 (first: it sets the path)

from tinymup.network import Config

SEEDS = [0, 1, 2]
LRS = {"sp": [2.0**e for e in range(-11, -4)], "mup": [2.0**e for e in range(-9, -3)]}          # around the optima of all widths
LRS_512 = {"sp": [2.0**e for e in range(-11, -6)], "mup": [2.0**e for e in range(-9, -4)]}      # dear: around its own

GRIDS = [(Config(param=param), {"width": widths, "lr": lrs[param], "seed": SEEDS})
         for widths, lrs in [([512], LRS_512), ([64, 128, 256], LRS)] for param in LRS]

if __name__ == "__main__":
    flags = arguments(__doc__)
    if not flags.redraw:
        train("lr_transfer", GRIDS, flags.jobs)
    show("lr_transfer", "Transformer on Python source, 300 steps of AdamW, mean and range of 3 seeds")
