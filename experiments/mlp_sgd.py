"""Claim: with SGD too, μP's best learning rate stays from width 64 to 2048, and SP's falls.

    python experiments/mlp_sgd.py --jobs 2

An MLP that reads the last 8 bytes, on 8 × 32 bytes a step. SP and μP are the same network at width
64, the base. Under SP the sum of all features in the readout moves by lr·width in a step, so theory
expects the largest stable lr to fall like 1/width once that sum dominates.

The rival is SP with its lr divided by the width. It moves the output equally far at every width,
but the features ever less: the lazy regime. Theory expects its loss to fall behind μP's with width.

Refuted by: from width 64 to 2048 a drift of more than half an octave under μP, or of less than one
under SP; or, with the lr tuned at 64, at width 2048 a divergence of μP or a loss of SP·1/width that
is as good as μP's. A drift between optima beside divergence (?) is known to half an octave only.
"""
import math

import transfer  # first of ours: it sets the path
from tinymup.lab import optimum, plot
from tinymup.lab.config import Config
from tinymup.lab.plot import BLACK, BLUE, ORANGE

SMALL, SEEDS = 64, [0, 1]
# First and last log2 lr of each width, in steps of half an octave: around what is best at 64.
GRID = dict.fromkeys([64, 128, 256, 512], (-2, 1)) | dict.fromkeys([1024, 2048], (-1.5, 0.5))
NAMES = {"sp": "SP", "mup": "μP"}
TITLE = ("MLP with SGD on Python source, 300 steps of 8 × 32 bytes: mean and range of "
         f"{len(SEEDS)} seeds")


def grids():
    """The grids of runs, small widths first. SP has also the lrs that SP·1/width may need."""
    base, found = Config(model="mlp", optimizer="sgd", batch=8, seq=32), []
    for width, (first, last) in GRID.items():
        octaves = [first + i / 2 for i in range(round(2 * (last - first)) + 1)]
        divided = [e - math.log2(width / SMALL) for e in (-0.5, 0)]
        found += [(base, {"param": [param], "width": [width], "lr": [2.0**e for e in exponents],
                          "seed": SEEDS})
                  for param, exponents in (("sp", sorted({*divided, *octaves})), ("mup", octaves))]
    return found


def carried(groups):
    """{rule: {width: loss}}: the lr tuned at the smallest width under μP, used at every width."""
    at = {param: {width: {p.lr: p.loss for p in points} for width, points in by_width.items()}
          for param, by_width in groups.items()}
    best = transfer.best_point(groups["mup"][SMALL]).lr
    used = {"SP": ("sp", lambda width: best), "SP·1/width": ("sp", lambda w: best * SMALL / w),
            "μP": ("mup", lambda width: best)}
    return best, {rule: {width: losses.get(lr_of(width), math.nan)
                         for width, losses in at[param].items()}
                  for rule, (param, lr_of) in used.items()}


def report(groups):
    """The tables and drifts, then the loss of the lr tuned at width 64, and the verdict."""
    best, table = carried(groups)
    widths = list(groups["mup"])
    lines = [optimum.report("width", groups), "",
             f"lr 2^{math.log2(best):.3g}, tuned at width {SMALL}: held-out loss at other widths",
             f"{'width':14}" + "".join(f"{width:>10}" for width in widths)]
    for rule, losses in table.items():
        cells = ["diverged" if losses[w] is None else "not run" if math.isnan(losses[w])
                 else f"{losses[w]:.3f}" for w in widths]
        lines.append(f"{rule:14}" + "".join(f"{cell:>10}" for cell in cells))
    moved = {param: optimum.movement(by_width) for param, by_width in groups.items()}
    ours, rival = (table[rule][widths[-1]] for rule in ("μP", "SP·1/width"))
    against = [f"{NAMES[param]}'s best lr moves by {moved[param].octaves:+.2f}"
               for param, bad in (("mup", lambda o: abs(o) > optimum.STAYS),
                                  ("sp", lambda o: o > -optimum.MOVES))
               if bad(moved[param].octaves)]
    against += ["μP diverged" if ours is None else f"SP·1/width has {rival:.3f}, μP {ours:.3f}"] * (
        ours is None or rival is not None and rival <= ours)
    return "\n".join([*lines, transfer.verdict(against)])


def draw(groups):
    """Loss against lr under SP and μP, then the loss of the lr tuned at 64 against width."""
    figure, axes = plot.panels(3)
    plot.draw_losses(axes, "width", {param: groups[param] for param in NAMES})
    draw_carried(axes[2], *carried(groups))
    plot.save(figure, transfer.FIGURES / "mlp_sgd.png", TITLE)


def draw_carried(ax, best, table):
    """The loss of the lr that is tuned at the smallest width, against width."""
    looks = ("o-", BLACK), ("s--", ORANGE), ("^-", BLUE)
    for i, ((rule, losses), (style, colour)) in enumerate(zip(table.items(), looks)):
        known = {width: math.nan if loss is None else loss for width, loss in losses.items()}
        ax.plot(known.keys(), known.values(), style, color=colour, label=rule)
        gone = [width for width, loss in known.items() if math.isnan(loss)]
        ax.plot(gone, [0.98 - 0.04 * i] * len(gone), "x", color=colour,
                transform=ax.get_xaxis_transform())
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(GRID), list(map(str, GRID)))
    ax.set(title=f"lr 2^{math.log2(best):.3g}, tuned at width {SMALL}\n×: a seed diverged",
           xlabel="width")
    ax.legend()


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        transfer.train("mlp_sgd", grids(), flags)
    records = transfer.read("mlp_sgd")
    groups = optimum.curves(records)[1]
    print(report(groups))
    draw(groups)
