"""Claim: what lr_transfer.py finds up to width 1024 holds to width 4096.

    CUPY_TF32=1 python experiments/wide_transfer.py --device gpu --jobs 6

Refuted by: from width 64 to 4096, a drift of more than half an octave under μP, u-μP or Muon's
column of μP (which ends at 2048: Newton–Schulz costs most there), or of less than one octave under
SP. Each grid has the predicted optimum between its inner points.

The rival is SP with its learning rate divided by the width: SP's curve, read one octave further
left for each doubling of the width. If theory is right that it starves the embedding, the biases
and the readout, it has to show here, where it divides by up to 64. It wins if its loss with the lr
tuned at width 64 is as good as μP's at width 4096.

A network of width 4096 has 400 million parameters: this one needs a GPU. All widths run there, with
matrix products in TF32, which rounds their inputs to 10 bits.
"""
import transfer  # first: it sets the path
import tuned_small
from tinymup.lab import optimum, plot
from tinymup.lab.config import Config

SEEDS = [0, 1]
WIDTHS = {"sp": {64: (-8, -5), 1024: (-12, -9), 2048: (-13, -10), 4096: (-14, -11)},
          "mup": dict.fromkeys([64, 1024, 2048, 4096], (-8, -5)),
          "umup": dict.fromkeys([64, 1024, 2048, 4096], (-1, 2)),
          "muon": dict.fromkeys([64, 1024, 2048], (-6, -3))}   # first and last log2 lr
NAMES = {"sp": "SP", "mup": "μP", "umup": "u-μP", "muon": "Muon"}


def grids():
    """The grids of runs, seed by seed, the widest networks first."""
    found = []
    for seed in SEEDS:
        for width in sorted(WIDTHS["mup"], reverse=True):
            for rule, exponents in WIDTHS.items():
                if width in exponents:
                    first, last = exponents[width]
                    base = (Config(optimizer="muon") if rule == "muon" else Config(param=rule))
                    found.append((base, {"width": [width], "seed": [seed],
                                         "lr": [2.0**e for e in range(first, last + 1)]}))
    return found


def groups(records):
    """{rule: {width: [Point, …]}}"""
    found = {}
    for record in records:
        c = record["config"]
        rule = "muon" if c["optimizer"] == "muon" else c["param"]
        kept = {field: c[field] for field in ("width", "lr", "seed")}
        found.setdefault(rule, []).append(record | {"config": {"param": rule, **kept}})
    return {NAMES[rule]: next(iter(optimum.curves(found[rule])[1].values()))
            for rule in WIDTHS if rule in found}


def verdict(found):
    """What the drifts and the losses of the tuned learning rates say of claim and rival."""
    moved = {name: optimum.movement(by_width).octaves for name, by_width in found.items()}
    against = [f"{name} drifts {octaves:+.2f}" for name, octaves in moved.items()
               if octaves is None or (abs(octaves) < optimum.MOVES if name == "SP"
                                      else abs(octaves) > optimum.STAYS)]
    last = max(WIDTHS["mup"])
    ours, rival = (tuned_small.tuned(name, found[key])[1][last] for name, key in
                   (("μP", "μP"), (tuned_small.PER_WIDTH, "SP")))
    return ("; ".join(["refuted", *against]) if against else "not refuted") + (
        f"; at width {last}, tuned at {min(WIDTHS['mup'])}: μP {loss(ours)}, rival {loss(rival)}")


def loss(point):
    """The loss of a point, and its range over seeds."""
    return f"{point.loss:.3f} ({point.low:.3f} to {point.high:.3f})" if point else "none"


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        transfer.train("wide_transfer", grids(), flags)
    found = groups(transfer.read("wide_transfer"))
    print(optimum.report("width", found) + "\n")
    print(tuned_small.table({"SP": found["SP"], tuned_small.PER_WIDTH: found["SP"], **found}))
    print(verdict(found))
    plot.loss_against_lr("width", found, transfer.FIGURES / "wide_transfer.png",
                         "300 steps of AdamW or Muon on an H100: mean and range of "
                         f"{len(SEEDS)} seeds")
