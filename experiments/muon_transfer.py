"""Claim: under μP and Muon's column of the table the best learning rate stays while the network grows, for every shape factor.

    python experiments/muon_transfer.py --jobs 2

Refuted by: a drift of more than half an octave from width 64 to 512 (spectral) or to 128 (the others, one seed).

The lr given to tinymup is η, at the base width, and the table makes C from it such that C·s (s the shape factor) grows as the
spectral condition wants: so all rules train the same family of networks, and differ by constants that no width changes, the s of
each shape at the base (keller doubles the step of down-projections, spectral halves it). A user of a bare rule types C itself; C = η
under spectral, keller and none, while Moonlight's s grows like √width, so that there the C to type falls by √width, which is the
drift in the last column. `ema` and `sum` momentum differ by a factor that Newton-Schulz divides out: their losses must agree to rounding,
up to the best lr; far above it training is chaotic, and rounding itself makes two runs differ.
"""
import math

from transfer import FIGURES, arguments, read, train  # noqa: I001 (first: it sets the path)

from tinymup import plot, sweep
from tinymup.network import Config, build, complete

LRS = [2.0**e for e in range(-7, -2)]
WIDTHS, SEEDS = [64, 128, 256], [0, 1]
OTHER_SCALES, OTHER_WIDTHS = ["keller", "moonlight", "none"], [64, 128]
SAME = 1e-4   # of losses after 300 float32 steps; 1.2e-6 was seen at width 64 and lr 2^-5
TITLE = "Muon on the hidden matrices, 300 steps; spectral: 2 seeds up to width 256, else 1 seed"


def grids():
    """spectral on all widths and seeds, the other rules on the smaller widths, the other momentum form on the smallest."""
    muon = Config(optimizer="muon")
    return [(muon, {"width": [512], "lr": LRS, "seed": SEEDS[:1]}),
            (muon, {"width": WIDTHS, "lr": LRS, "seed": SEEDS}),
            (muon, {"muon_scale": OTHER_SCALES, "width": OTHER_WIDTHS, "lr": LRS}),
            (muon, {"momentum_form": ["sum"], "width": OTHER_WIDTHS[:1], "lr": LRS})]


def hidden_rows(scale, width):
    """What the matrices of one block get per unit of η, by their last name."""
    rows = build(complete(Config(optimizer="muon", muon_scale=scale, width=width, lr=1.0))).rows
    return {row.name.removeprefix("block0."): row for row in rows if row.optimizer == "muon" and row.name.startswith("block0.")}


def drifts(records):
    """Per scale a line: what a step is at the base, how far the best η moved, and how far the C moved that a bare rule wants."""
    lines = ["", f"{'':10}{'s at the base width':>28}{'':12}{'octaves by which the best lr moves':>50}",
             f"{'scale':10}{'square':>8}{'up':>8}{'down':>8}{'widths':>16}{'η, with the table':>26}{'C, the bare rule':>22}"]
    _, groups = sweep.curves(records)
    for label, by_width in groups.items():
        scale = label.split()[-1]
        first, *_, last = by_width
        octaves, exact = sweep.drift(by_width)
        at_base = [hidden_rows(scale, 64)[name].shape_factor for name in ("query", "up", "down")]
        growth = {math.log2(row.lr / hidden_rows(scale, first)[name].lr) for name, row in hidden_rows(scale, last).items()}
        assert max(growth) - min(growth) < 1e-9                    # one number for all hidden matrices
        moved = ["none"] * 2 if octaves is None else [f"{octaves:+.2f}", f"{octaves + growth.pop():+.2f}"]
        lines.append(f"{scale:10}" + "".join(f"{s:8.2f}" for s in at_base) + f"{f'{first} to {last}':>16}{moved[0]:>26}{moved[1]:>22}"
                     + ("" if exact else "  (?)"))
    return "\n".join(lines)


def forms(records):
    """How far the losses of the two momentum forms are apart, per lr; up to the best lr they must be the same."""
    losses = {}
    for record in records:
        c = record["config"]
        if c["muon_scale"] == "spectral":
            losses.setdefault((c["width"], c["seed"], c["lr"]), {})[c["momentum_form"]] = record["loss"]
    pairs = {key[2]: pair["ema"] - pair["sum"] for key, pair in sorted(losses.items()) if len(pair) == 2 and None not in pair.values()}
    best = min(pairs, key=lambda lr: losses[OTHER_WIDTHS[0], SEEDS[0], lr]["ema"])
    worst = max(abs(difference) for lr, difference in pairs.items() if lr <= best)
    return (f"\nloss with ema less loss with sum, width {OTHER_WIDTHS[0]}: "
            + ", ".join(f"{difference:+.5f} at 2^{math.log2(lr):g}" for lr, difference in pairs.items())
            + f"\nup to the best lr at most {worst:.5f}: {'the same' if worst < SAME else 'NOT the same'}")


if __name__ == "__main__":
    flags = arguments(__doc__)
    if not flags.redraw:
        train("muon_transfer", grids(), flags.jobs)
    records = read("muon_transfer")
    ema = [record for record in records if record["config"]["momentum_form"] == "ema"]
    ema.sort(key=lambda record: record["config"]["muon_scale"] == "spectral")      # last: the legend stands there, and has all widths
    size, groups = sweep.curves(ema)
    print(sweep.report(size, groups))
    drawn = {label: by_width for label, by_width in groups.items() if "none" not in label}         # the table has it too
    plot.loss_against_lr(size, drawn, FIGURES / "muon_transfer.png", TITLE)
    print(drifts(ema))
    print(forms(records))
