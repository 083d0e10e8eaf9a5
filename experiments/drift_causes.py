"""Claim: one named part of the network or the schedule causes the small drift of μP's optimum.

    python experiments/drift_causes.py --jobs 2

Under μP the best learning rate falls by 0.16 octaves from width 64 to 256 (lr_transfer.py, three
seeds that agree within 0.04). The drift is measured again after each of ten changes. The readout
starts at 0, so its logits do not shrink like 1/√width; the queries do; both do. There is no
warm-up; the warm-up takes a third of all steps; the learning rate does not decay. There are two
heads at every width, instead of more in a wider network; each step has four times as much text; the
grid has half octaves, since the drift is less than its step. The embedding's learning rate falls
like 1/width: that is SP·1/width, read from lr_transfer.csv (its readout starts as SP's, too). This
tenth change was added when the verdict on the others was known.

A change has found a cause if it halves the drift of 0.16. Refuted by: no such change, or several.
The rival: the drift stays under every change, and so belongs to the finite width itself.
"""
import transfer  # first: it sets the path
from tinymup.lab import optimum, plot
from tinymup.lab.config import Config

WIDTHS, SEEDS, LRS = [64, 256], [0, 1], [2.0**e for e in range(-8, -4)]
# The change that takes a suspect away: its options; head_dim has a value per width.
SUSPECTS = {
    "readout starts at 0": {"zero_readout": True},
    "queries start at 0": {"zero_query": True},
    "both start at 0": {"zero_readout": True, "zero_query": True},
    "no warm-up": {"warmup": 0},
    "warm-up of 100 steps": {"warmup": 100},
    "no decay of the lr": {"schedule": "constant"},
    "2 heads at every width": {"head_dim": {64: 32, 256: 128}},
    "batch of 64": {"batch": 64},
}
BETWEEN = [2.0**(e + 0.5) for e in (-8, -7)]      # the half octaves beside the optima
VARIED = ["zero_readout", "zero_query", "warmup", "schedule", "head_dim", "batch"]


def options(suspect, width):
    """The options of a suspect's runs at a width."""
    return {name: value[width] if isinstance(value, dict) else value
            for name, value in SUSPECTS[suspect].items()}


def grids():
    """Half octaves of plain μP (its octaves are lr_transfer.csv's), then the grids per suspect."""
    plain = [(Config(), {"width": WIDTHS, "lr": BETWEEN, "seed": SEEDS})]
    return [plain, *([(Config(width=width, **options(suspect, width)), {"lr": LRS, "seed": SEEDS})
                      for width in WIDTHS] for suspect in SUSPECTS)]


def curves(records, chosen):
    """{width: [Point, …]} of the runs whose options are those of chosen(width)."""
    found = {}
    for width in WIDTHS:
        default = {name: getattr(Config(), name) for name in VARIED} | {"warmup": 20}
        wanted = default | chosen(width)
        by_lr = {}
        for r in records:
            c = default | r["config"]
            if c["width"] == width and all(str(c[f]) == str(wanted[f]) for f in VARIED):
                by_lr.setdefault(c["lr"], {})[c["seed"]] = r["loss"]
        found[width] = [optimum.point(lr, losses) for lr, losses in sorted(by_lr.items())]
    return found


def measured():
    """{suspect: {width: [Point, …]}} of those that have run, plain μP first."""
    plain, sp = ([r for r in transfer.read("lr_transfer") if r["config"]["param"] == param
                  and r["config"]["width"] in WIDTHS and r["config"]["seed"] in SEEDS]
                 for param in ("mup", "sp"))
    per_width = [r | {"config": r["config"] | {      # named by the lr of the base width
        "lr": r["config"]["lr"] * r["config"]["width"] / WIDTHS[0]}} for r in sp]
    records = transfer.read("drift_causes")
    found = {"μP": curves(plain, lambda width: {}),
             "grid of half octaves": curves(plain + records, lambda width: {}),
             "embedding's lr · 1/width": curves(per_width, lambda width: {})}
    on_octaves = [r for r in records if r["config"]["lr"] in LRS]
    found |= {suspect: curves(on_octaves, lambda width: options(suspect, width))
              for suspect in SUSPECTS}
    return {name: by_width for name, by_width in found.items() if all(by_width.values())}


def report(found):
    """A row per suspect: both optima and losses, the drift, those of the seeds; the verdict."""
    lines = [f"{'change':26}" + "".join(f"{f'lr* at {w}':>12}{'loss':>8}" for w in WIDTHS)
             + f"{'octaves':>10}   of the seeds"]
    drifts = {}
    for name, by_width in found.items():
        moved = optimum.movement(by_width)
        drifts[name] = moved.octaves
        best = [optimum.optimum(points) for points in by_width.values()]
        lines.append(f"{name:26}" + "".join(f"{o.log2_lr:>12.2f}{o.loss:>8.3f}" for o in best)
                     + f"{moved.octaves:>+10.2f}{' ' if moved.exact else '?'}  "
                     + ", ".join(f"{octaves:+.2f}" for octaves in moved.by_seed))
    guilty = [name for name, octaves in drifts.items() if abs(octaves) <= abs(drifts["μP"]) / 2]
    return "\n".join([*lines, f"halve the drift: {', '.join(guilty) or 'none'}; "
                      + ("not refuted" if len(guilty) == 1 else "refuted")])


def draw(found):
    """A row per suspect: the drift, and that of each seed."""
    figure, ax = plot.plt.subplots(figsize=(7, 1.2 + 0.33 * len(found)))
    half = abs(optimum.movement(found["μP"]).octaves) / 2
    ax.axvspan(-half, half, color=plot.BLUE, alpha=0.15, linewidth=0)
    ax.axvline(0, color="grey", linewidth=0.8)
    for y, by_width in enumerate(found.values()):
        moved = optimum.movement(by_width)
        ax.plot(moved.octaves, y, "o", color=plot.BLUE, markersize=8, markeredgecolor="black",
                markerfacecolor=plot.BLUE if moved.exact else "white")
        ax.plot(moved.by_seed, [y] * len(moved.by_seed), "|", color="black", markersize=12)
    ax.set_yticks(range(len(found)), list(found))
    ax.set(ylim=(len(found) - 0.5, -0.5), xlabel="octaves by which μP's best learning rate moves")
    dot = {"marker": "o", "markersize": 8, "markeredgecolor": "black", "linestyle": ""}
    plot.legend(figure, {
        "mean of the seeds": dot | {"color": plot.BLUE},
        "an optimum at the grid's edge (?)": dot | {"color": "white"},
        "a seed": {"marker": "|", "color": "black", "markersize": 12, "linestyle": ""},
        "half of the drift or less": {"color": plot.BLUE, "alpha": 0.15, "linewidth": 8}})
    plot.save(figure, transfer.FIGURES / "drift_causes.png",
              f"μP after one change, width {WIDTHS[0]} to {WIDTHS[-1]}")


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        for count in range(1, len(grids()) + 1):       # the CSV holds the finished suspects
            transfer.train("drift_causes", sum(grids()[:count], []), flags)
    found = measured()
    print(report(found))
    draw(found)
