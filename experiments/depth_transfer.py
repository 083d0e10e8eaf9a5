"""Claim: as a Transformer grows from 2 to 32 blocks, the best learning rate moves without a depth rule, and stays under Depth-μP (α = ½),
CompleteP (α = 1) and u-μP, whose branches and learning rates know the depth.

Refuted by: a drift of "none" of at most half an octave over these depths, or of one of the other three above half an octave.
"""
from transfer import arguments, read, show, train  # noqa: I001 (first: it sets the path)

from tinymup.network import Config

DEPTHS, SEEDS = [2, 8, 32], [0]
MUP, UMUP = (Config(param=param, width=64, batch=8, seq=32) for param in ("mup", "umup"))
RATES = [2.0**e for e in range(-8, -4)]
GRIDS = [(MUP, {"depth_rule": ["none"], "depth": DEPTHS, "lr": [2.0**-10, 2.0**-9, *RATES[:2]], "seed": SEEDS}),   # its optimum may fall
         (MUP, {"depth_rule": ["depth-mup", "completep"], "depth": DEPTHS, "lr": RATES, "seed": SEEDS}),
         (UMUP, {"depth": DEPTHS, "lr": [2.0**e for e in range(-2, 2)], "seed": SEEDS})]

NAMES = {"none": "μP, no depth rule", "depth-mup": "μP, Depth-μP (α = ½)", "completep": "μP, CompleteP (α = 1)", "umup": "u-μP"}


def labelled(record):
    """The record with its parametrization and depth rule under one name, as curves are to be grouped."""
    c = record["config"]
    name = NAMES["umup" if c["param"] == "umup" else c["depth_rule"]]
    return record | {"config": {"param": name, **{field: c[field] for field in ("width", "depth", "lr", "seed")}}}


if __name__ == "__main__":
    flags = arguments(__doc__)
    if not flags.redraw:
        train("depth_transfer", GRIDS, flags.jobs)
    records = sorted(map(labelled, read("depth_transfer")), key=lambda r: list(NAMES.values()).index(r["config"]["param"]))
    show("depth_transfer", "Transformer of width 64 on Python source, 300 steps of AdamW on 8 × 32 bytes, one seed; depth rules relative to 2 blocks", records)
