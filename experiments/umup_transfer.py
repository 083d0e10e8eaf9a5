"""Claims: u-μP's best learning rate stays where it is from width 64 to 512, as μP's does and SP's does not; and with its five α's left at 1,
u-μP is nearly as good as with the best value of any one of them.

Refuted by: a drift above half an octave; or an α whose best value in 2^-2 … 2^2, the others at 1, lowers the loss by more than 0.05 nats.
SP and μP are those of lr_transfer.py, where it has run.
"""
import math

import transfer  # first: it sets the path
from tinymup import sweep
from tinymup.network import UNIT_ONLY, Config
from tinymup.plot import plt

RATES, SEEDS = [2.0**e for e in range(-2, 2)], [0, 1]
ALPHA_WIDTH, ALPHA_LR, ALPHAS = 64, 1.0, [2.0**e for e in range(-2, 3)]
GRIDS = [(Config(param="umup"), {"width": [64, 128, 256], "lr": RATES, "seed": SEEDS}),
         (Config(param="umup"), {"width": [512], "lr": RATES, "seed": SEEDS[:1]}),
         *((Config(param="umup", width=ALPHA_WIDTH, lr=ALPHA_LR), {alpha: ALPHAS, "seed": SEEDS[:1]}) for alpha in UNIT_ONLY)]


def transfers(records):
    """{parametrization: {width: [Point, …]}}: u-μP with all α's at 1, and SP and μP from lr_transfer.csv."""
    plain = [r for r in records if all(float(r["config"][alpha]) == 1 for alpha in UNIT_ONLY)]
    groups = {}
    if (transfer.RESULTS / "lr_transfer.csv").exists():
        groups |= sweep.curves(transfer.read("lr_transfer"))[1]
    return groups | {"umup": next(iter(sweep.curves([strip(r) for r in plain])[1].values()))}


def strip(record):
    """The record without its α's, so that they are no axis."""
    return record | {"config": {name: value for name, value in record["config"].items() if name not in UNIT_ONLY}}


def alpha_sweeps(records):
    """{α's name: {value: loss, None where a run diverged}}, the other α's at 1."""
    sweeps = {}
    for swept in UNIT_ONLY:
        losses = {}
        for r in records:
            c = r["config"]
            if (c["width"], c["lr"], c["seed"]) == (ALPHA_WIDTH, ALPHA_LR, SEEDS[0]) and all(float(c[other]) == 1 for other in UNIT_ONLY if other != swept):
                losses.setdefault(float(c[swept]), []).append(r["loss"])
        sweeps[swept] = {value: None if None in each else sum(each) / len(each) for value, each in sorted(losses.items())}
    return sweeps


def report(sweeps):
    """A row per α: its losses, and how far 1 is from the best."""
    lines = [f"width {ALPHA_WIDTH}, lr {ALPHA_LR:g}: held-out loss, the other α's at 1",
             f"{'':16}" + "".join(f"{'2^%g' % math.log2(v):>9}" for v in ALPHAS) + "   1 loses"]
    for name, losses in sweeps.items():
        cells = [f"{losses[v]:.3f}" if losses.get(v) else "no loss" for v in ALPHAS]
        best = min(loss for loss in losses.values() if loss)
        lines.append(f"{name:16}" + "".join(f"{c:>9}" for c in cells) + f"{losses[1.0] - best:>10.3f}")
    return "\n".join(lines)


def draw(groups, sweeps):
    """A panel of loss against lr per parametrization, and one of loss against each α."""
    figure, axes = plt.subplots(1, len(groups) + 1, figsize=(3.6 * len(groups) + 4, 4), sharey=True, layout="constrained")
    colours = dict(zip((64, 128, 256, 512), plt.get_cmap("viridis")((0.0, 0.3, 0.6, 0.9))))
    best = []
    for ax, (label, by_width) in zip(axes, groups.items()):
        for width, points in by_width.items():
            drawn = [p for p in points if p.loss is not None]
            x = [math.log2(p.lr) for p in drawn]
            ax.plot(x, [p.loss for p in drawn], "-o", markersize=3, color=colours[width], label=f"width {width}")
            ax.fill_between(x, [p.low for p in drawn], [p.high for p in drawn], color=colours[width], alpha=0.2, linewidth=0)
            optimum = sweep.optimum(points)
            ax.plot(optimum.log2_lr, optimum.loss, "*", markersize=14, markeredgecolor="black", color=colours[width], zorder=3)
            best.append(optimum.loss)
        octaves, exact = sweep.drift(by_width)
        ax.set_title(f"{label}: best lr moves by {octaves:+.2f} octaves" + ("" if exact else " (?)"), fontsize=10)
        ax.set_xlabel("log2 learning rate")
    for name, losses in sweeps.items():
        drawn = {math.log2(value): loss for value, loss in losses.items() if loss}
        axes[-1].plot(drawn.keys(), drawn.values(), "-o", markersize=3, label=name)
    axes[-1].set_title(f"umup, width {ALPHA_WIDTH}, lr {ALPHA_LR:g}: one α at a time", fontsize=10)
    axes[-1].set_xlabel("log2 α")
    for ax in axes:
        ax.grid(alpha=0.3)
    axes[-1].legend(fontsize=8)
    axes[-2].legend(fontsize=8)
    axes[0].set_ylabel("held-out loss, nats per byte")
    axes[0].set_ylim(min(best) - 0.05, max(best) + 0.4)
    figure.savefig(transfer.FIGURES / "umup_transfer.png", dpi=85)
    plt.close(figure)


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        transfer.train("umup_transfer", GRIDS, flags.jobs)
    records = transfer.read("umup_transfer")
    groups, sweeps = transfers(records), alpha_sweeps(records)
    print(sweep.report("width", groups) + "\n\n" + report(sweeps))
    draw(groups, sweeps)
