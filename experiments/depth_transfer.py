"""Claim: from 2 to 32 blocks the best learning rate moves without a depth rule and stays with one.

    python experiments/depth_transfer.py --jobs 2

The rules are Depth-μP (branches weigh 1/√depth), CompleteP (1/depth) and u-μP's own, each with the
learning rates that belong to it. Refuted by: without a rule a drift of at most half an octave, or
with one of the three a drift of more.

The second claim: under CompleteP it stays even if the width grows with the depth, from 64 to 256.
Refuted by: a drift of more than half an octave from 2 blocks of width 64 to 32 of width 256.

Few bytes per step: differences of some hundredths of a nat mean nothing here. The shallow networks
and the narrow ones run first.
"""
from transfer import arguments, read, show, train  # noqa: I001 (first: it sets the path)

from tinymup.lab.config import Config

DEPTHS, SEEDS = [2, 8, 32], [0, 1, 2]
MUP, UMUP = (Config(param=param, width=64, batch=8, seq=32) for param in ("mup", "umup"))
# First and last log2 lr, by rule: around the optima of all depths. With α = ½ they rise with depth,
# without a rule they fall.
EXPONENTS = {"none": (-10, -5), "depth-mup": (-9, -3), "completep": (-9, -5), "umup": (-3, 3)}
TOGETHER = {8: 128, 32: 256}                   # the width of each depth; 2 blocks have 64
NAMES = {"none": "μP, no depth rule", "depth-mup": "μP, Depth-μP (α = ½)",
         "completep": "μP, CompleteP (α = 1)",
         "together": "CompleteP, widths 64, 128, 256", "umup": "u-μP"}


def grids():
    """The grids of runs, the cheap ones first, the wide and deep one last."""
    found = []
    for depth in DEPTHS:
        for rule, (first, last) in EXPONENTS.items():
            base, axes = (UMUP, {}) if rule == "umup" else (MUP, {"depth_rule": [rule]})
            found.append((base, axes | {"depth": [depth], "seed": SEEDS,
                                        "lr": [2.0**e for e in range(first, last + 1)]}))
    return found + [(MUP, {"depth_rule": ["completep"], "depth": [depth], "width": [width],
                           "seed": SEEDS, "lr": [2.0**e for e in range(-8, -5)]})
                    for depth, width in TOGETHER.items()]


def labelled(records):
    """The records under the names of their rules, with depth as the only size.

    In the order of NAMES. A rule that has run at one depth only is left out.
    """
    found = []
    for name in NAMES:
        for record in records:
            c = record["config"]
            rule = "umup" if c["param"] == "umup" else c["depth_rule"]
            together = rule == "completep" and c["width"] == TOGETHER.get(c["depth"], 64)
            if together if name == "together" else rule == name and c["width"] == 64:
                kept = {field: c[field] for field in ("depth", "lr", "seed")}
                found.append(record | {"config": {"param": NAMES[name], **kept}})
    several = {r["config"]["param"] for r in found if r["config"]["depth"] > min(DEPTHS)}
    return [r for r in found if r["config"]["param"] in several]


def title(records):
    """The title of the figure."""
    seeds = len({r["config"]["seed"] for r in records})
    return ("Transformer of width 64 if not said otherwise, on Python source, 300 steps of AdamW "
            f"on 8 × 32 bytes; mean and range of {seeds} seed" + "s" * (seeds > 1))


if __name__ == "__main__":
    flags = arguments(__doc__)
    if not flags.redraw:
        train("depth_transfer", grids(), flags)
    records = read("depth_transfer")
    show("depth_transfer", title(records), labelled(records))
