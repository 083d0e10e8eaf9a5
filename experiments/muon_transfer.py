"""Claim: under μP's column for Muon the best learning rate stays, whatever the shape factor s.

    python experiments/muon_transfer.py --jobs 2

Refuted by: a drift of more than half an octave, from width 64 to 1024 for the spectral factor, from
64 to 512 for the others (one seed).

The strongest rival is SP with Muon. SP and μP have the same cells for the hidden matrices, which
Muon updates. They differ in the readout, which AdamW updates, and in the embedding's ε. So SP's
curve shows the spectral rule alone. The rest of μP's table is worth something here only if it
lowers the drift or the loss at width 1024.

A step of Muon is C · s · O, with O orthogonal. The published choices of s are Keller Jordan's,
Moonlight's, the spectral one, and none. The user gives η, the learning rate at the base width, and
the table makes C from it, so that C · s grows as the spectral condition wants. So the four differ
only in the s that each shape has at the base width: keller doubles the step of up-projections,
spectral does too and halves that of down-projections.

Without the table one tunes C itself. It equals η for spectral, keller and none. Moonlight's s grows
like √width, so the best C falls by half an octave per doubling more than η: see the last column.

The ema and sum forms of momentum differ by a factor that Newton–Schulz divides out. So their losses
must agree to rounding. Far above the best lr training is chaotic, and rounding alone makes two runs
differ: there nothing is claimed.
"""
import math

from transfer import FIGURES, arguments, curve, read, train  # noqa: I001 (first: it sets the path)

from tinymup.lab import optimum, plot
from tinymup.lab.config import Config, build, complete

LRS = [2.0**e for e in range(-7, -2)]
# LARGE: the largest width, and learning rates around its predicted optimum.
WIDTHS, SEEDS, LARGE = [64, 128, 256, 512], [0, 1, 2], (1024, [2.0**e for e in range(-7, -3)])
OTHER_SCALES, OTHER_WIDTHS = ["keller", "moonlight", "none"], [64, 128, 512]
SAME = 1e-4   # of losses after 300 steps: 1.2e-6 was seen at width 64 and lr 2^-5, in float32
TITLE = "Muon on the hidden matrices, 300 steps; mean and range of seeds"


def grids():
    """spectral on all widths and seeds, the others on some widths, sum on the smallest.

    What the claims need most comes first.
    """
    muon = Config(optimizer="muon")
    both = {"param": ["mup", "sp"], "seed": SEEDS}
    others = {"muon_scale": OTHER_SCALES, "lr": LRS}
    return [(muon, both | {"width": WIDTHS[:2], "lr": LRS}),
            (muon, both | {"width": [LARGE[0]], "lr": LARGE[1]}),
            (muon, {"momentum_form": ["sum"], "width": OTHER_WIDTHS[:1], "lr": LRS}),
            (muon, others | {"width": OTHER_WIDTHS[:2]}),
            (muon, {"width": WIDTHS[3:], "lr": LRS, "seed": SEEDS}),
            (muon, both | {"width": WIDTHS[2:3], "lr": LRS}),
            (muon, others | {"width": OTHER_WIDTHS[2:]})]


def hidden_rows(scale, width):
    """{last name: row} of the matrices of one block, for η = 1."""
    config = complete(Config(optimizer="muon", muon_scale=scale, width=width, lr=1.0))
    return {row.name.removeprefix("block0."): row for row in build(config).rows
            if row.optimizer == "muon" and row.name.startswith("block0.")}


def growth(scale, first, last):
    """Octaves by which C grows between two widths at equal η: the same for all hidden matrices."""
    before, after = hidden_rows(scale, first), hidden_rows(scale, last)
    octaves = {name: math.log2(row.lr / before[name].lr) for name, row in after.items()}
    spread = max(octaves.values()) - min(octaves.values())
    assert spread < 1e-9, f"C grows differently in different matrices: {octaves}"   # rounding
    return octaves["query"]


def named_groups(records):
    """{name: {width: [Point, …]}}: a name has the shape factor, and SP where it is the rival."""
    names = {}
    for record in records:
        c = record["config"]
        name = c["muon_scale"] + ", SP" * (c["param"] == "sp")
        names.setdefault(name, []).append(record)
    order = sorted(names, key=lambda name: not name.startswith("spectral"))
    return {name: curve(names[name]) for name in order}


def drifts(groups):
    """A line per group: s at the base, and how far the best η and the best C moved."""
    lines = ["", f"{'':14}{'s at the base width':>28}{'':12}"
                 f"{'octaves by which the best lr moves':>50}",
             f"{'scale':14}{'square':>8}{'up':>8}{'down':>8}{'widths':>16}"
             f"{'η, with the table':>26}{'C, the bare rule':>22}"]
    for name, by_width in groups.items():
        scale = name.split(",")[0]
        first, *_, last = by_width
        octaves, exact, *_ = optimum.movement(by_width)
        at_base = [hidden_rows(scale, 64)[row].shape_factor for row in ("query", "up", "down")]
        moved = ["none"] * 2 if octaves is None else [
            f"{octaves:+.2f}", f"{octaves + growth(scale, first, last):+.2f}"]
        lines.append(f"{name:14}" + "".join(f"{s:8.2f}" for s in at_base)
                     + f"{f'{first} to {last}':>16}{moved[0]:>26}{moved[1]:>22}"
                     + ("" if exact else "  (?)"))
    return "\n".join(lines)


def forms(records):
    """How far the losses of the two momentum forms are apart, by lr, and whether they agree."""
    width, seed = OTHER_WIDTHS[0], SEEDS[0]
    losses = {}
    for record in records:
        c = record["config"]
        if [c[f] for f in ("param", "muon_scale", "width", "seed")] == [
                "mup", "spectral", width, seed]:
            losses.setdefault(c["lr"], {})[c["momentum_form"]] = record["loss"]
    pairs = {lr: (pair["ema"], pair["sum"]) for lr, pair in sorted(losses.items())
             if len(pair) == 2 and None not in pair.values()}
    best = min(pairs, key=lambda lr: pairs[lr][0])
    worst = max(abs(ema - total) for lr, (ema, total) in pairs.items() if lr <= best)
    return (f"\nloss with ema less loss with sum, width {width}: "
            + ", ".join(f"{ema - total:+.5f} at 2^{math.log2(lr):g}"
                        for lr, (ema, total) in pairs.items())
            + f"\nup to the best lr at most {worst:.5f}: "
            + ("the same" if worst < SAME else "NOT the same"))


def report(records):
    """Prints the tables, and draws the figure. The table has all factors, the figure not "none"."""
    groups = named_groups([r for r in records if r["config"]["momentum_form"] == "ema"])
    print(optimum.report("width", groups))
    drawn = {f"Muon, {name}": by_width for name, by_width in groups.items() if name != "none"}
    plot.loss_against_lr("width", drawn, FIGURES / "muon_transfer.png", TITLE)
    print(drifts(groups))
    print(forms(records))


if __name__ == "__main__":
    flags = arguments(__doc__)
    if not flags.redraw:
        for count in range(3, len(grids()) + 1):       # the CSV holds the grids that are finished
            train("muon_transfer", grids()[:count], flags)
    report(read("muon_transfer"))
