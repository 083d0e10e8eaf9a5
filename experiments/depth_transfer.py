"""Claim: from 2 to 32 blocks the best learning rate moves without a depth rule and stays with one.

    python experiments/depth_transfer.py --jobs 2

The rules are Depth-μP (branches weigh 1/√depth), CompleteP (1/depth) and u-μP's own, each with the
learning rates that belong to it. Refuted by: without a rule a drift of at most half an octave, or
with one of the three a drift of more.

One seed, and few bytes per step: differences of some hundredths of a nat mean nothing here.
"""
from transfer import arguments, read, show, train  # noqa: I001 (first: it sets the path)

from tinymup.lab.config import Config

DEPTHS, SEEDS = [2, 8, 32], [0]
MUP, UMUP = (Config(param=param, width=64, batch=8, seq=32) for param in ("mup", "umup"))
LRS = [2.0**e for e in range(-8, -4)]
LOW_LRS = [2.0**e for e in range(-10, -6)]     # without a rule the optimum may fall with depth
UMUP_LRS = [2.0**e for e in range(-2, 2)]
GRIDS = [(MUP, {"depth_rule": ["none"], "depth": DEPTHS, "lr": LOW_LRS, "seed": SEEDS}),
         (MUP, {"depth_rule": ["depth-mup", "completep"], "depth": DEPTHS, "lr": LRS,
                "seed": SEEDS}),
         (UMUP, {"depth": DEPTHS, "lr": UMUP_LRS, "seed": SEEDS})]

NAMES = {"none": "μP, no depth rule", "depth-mup": "μP, Depth-μP (α = ½)",
         "completep": "μP, CompleteP (α = 1)", "umup": "u-μP"}
TITLE = ("Transformer of width 64 on Python source, 300 steps of AdamW on 8 × 32 bytes, one seed; "
         "depth rules relative to 2 blocks")


def labelled(record):
    """The record with parametrization and depth rule under one name, by which it is grouped."""
    c = record["config"]
    name = NAMES["umup" if c["param"] == "umup" else c["depth_rule"]]
    kept = {field: c[field] for field in ("width", "depth", "lr", "seed")}
    return record | {"config": {"param": name, **kept}}


def in_order(records):
    """The labelled records in the order of `NAMES`."""
    order = list(NAMES.values())
    return sorted(map(labelled, records), key=lambda r: order.index(r["config"]["param"]))


if __name__ == "__main__":
    flags = arguments(__doc__)
    if not flags.redraw:
        train("depth_transfer", GRIDS, flags.jobs)
    show("depth_transfer", TITLE, in_order(read("depth_transfer")))
