"""Claims: u-μP's best learning rate stays from width 64 to 1024, and its α's need no tuning.

    python experiments/umup_transfer.py --jobs 2

Refuted by: a drift of more than half an octave; or one of the five α's whose best value in
2^-3 … 2^4, with the others at 1, lowers the loss by more than 0.05 nats. μP, from lr_transfer.csv
where there is one, stands beside it.
"""
import math

import transfer  # first: it sets the path
from tinymup.lab import optimum, plot
from tinymup.lab.config import FIELDS, Config
from tinymup.lab.plot import BLACK, BLUE, MARKERS, ORANGE, PURPLE, SKY

ALPHAS = [name for name in FIELDS if name.startswith("alpha_")]
WIDTHS, LRS, SEEDS = [64, 128, 256, 512, 1024], [2.0**e for e in range(-2, 2)], [0, 1, 2]
ALPHA_WIDTH, ALPHA_LR, VALUES = 64, 1.0, [2.0**e for e in range(-3, 5)]
ENOUGH = 0.05   # nats that an α of 1 may lose to the best value
GRIDS = [(Config(param="umup"), {"width": WIDTHS, "lr": LRS, "seed": SEEDS}),
         *((Config(param="umup", width=ALPHA_WIDTH, lr=ALPHA_LR),
            {alpha: VALUES, "seed": SEEDS}) for alpha in ALPHAS)]


def at_one(config, *but, names=ALPHAS):
    """Whether all multipliers in names are 1, those in but left aside."""
    return all(config[name] == 1 for name in names if name not in but)


def transfers(records):
    """{parametrization: {width: [Point, …]}}: u-μP with all α's at 1, and its rivals."""
    groups = {}
    if (transfer.RESULTS / "lr_transfer.csv").exists():
        groups |= optimum.curves(transfer.read("lr_transfer"))[1]
    return groups | {"umup": transfer.curve([r for r in records if at_one(r["config"])])}


def one_at_a_time(records, width=ALPHA_WIDTH, lr=ALPHA_LR, names=ALPHAS):
    """{name of an α: {value: mean loss of the seeds that all values have}}, the other α's at 1.

    names: other multipliers instead of the α's.
    """
    here = [r for r in records if [r["config"]["width"], r["config"]["lr"]] == [width, lr]]
    sweeps = {}
    for name in names:
        by_value = {}
        for r in here:
            if at_one(r["config"], name, names=names):
                by_value.setdefault(r["config"][name], {})[r["config"]["seed"]] = r["loss"]
        shared = set.intersection(*map(set, by_value.values()))     # like for like
        sweeps[name] = {value: optimum.point(value, {s: by_seed[s] for s in sorted(shared)}).loss
                        for value, by_seed in sorted(by_value.items())}
    return sweeps


def report(sweeps):
    """A row per α: its losses, and what 1 loses against the best. Then the verdict on 1."""
    lines = [f"width {ALPHA_WIDTH}, lr {ALPHA_LR:g}: held-out loss, the other α's at 1",
             f"{'':16}" + "".join(f"{'2^%g' % math.log2(v):>9}" for v in VALUES) + "   1 loses"]
    loses = {}
    for name, losses in sweeps.items():
        cells = [f"{losses[v]:.3f}" if losses.get(v) is not None else "no loss" for v in VALUES]
        best = min((loss for loss in losses.values() if loss is not None), default=math.nan)
        loses[name] = math.inf if losses.get(1.0) is None else losses[1.0] - best
        lines.append(f"{name:16}" + "".join(f"{c:>9}" for c in cells) + f"{loses[name]:>10.3f}")
    bad = [name for name, loss in loses.items() if loss > ENOUGH]
    return "\n".join([*lines, f"1 loses more than {ENOUGH} nats: {', '.join(bad) or 'none'}; "
                              f"the second claim is {'refuted' if bad else 'not refuted'}"])


def draw(groups, sweeps):
    """A panel of loss against lr for μP and for u-μP, and one of loss against each α."""
    figure, axes = plot.panels(3)
    plot.draw_losses(axes, "width", {label: groups[label] for label in ("mup", "umup")
                                     if label in groups})
    looks = zip(sweeps.items(), [BLACK, ORANGE, BLUE, SKY, PURPLE], MARKERS, strict=True)
    for (name, losses), color, marker in looks:
        drawn = {math.log2(value): loss for value, loss in losses.items() if loss is not None}
        axes[-1].plot(drawn.keys(), drawn.values(), color=color, marker=marker, markersize=4,
                      label=name.replace("alpha_", "α "))
    axes[-1].set(title=f"u-μP, width {ALPHA_WIDTH}, lr {ALPHA_LR:g}:\none α at a time",
                 xlabel="log2 α")
    axes[-1].legend(loc="lower center", ncols=2)
    plot.save(figure, transfer.FIGURES / "umup_transfer.png",
              "300 steps of AdamW: mean and range of three seeds")


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        transfer.train("umup_transfer", GRIDS, flags)
    records = transfer.read("umup_transfer")
    groups, sweeps = transfers(records), one_at_a_time(records)
    print(optimum.report("width", groups) + "\n\n" + report(sweeps))
    draw(groups, sweeps)
