"""Claim: under μP the best lr stays when another size grows, the other best values with the width.

    python experiments/what_transfers.py --jobs 2

Two kinds of panels. At width 128: the best learning rate, while the batch, the sequence length, the
number of steps or the head size change 4-fold or 16-fold. From width 64 to 256: the best value of
each other hyperparameter, all else at its default. The rival is SP; at width 256 it has the
learning rate that is best for it in lr_transfer.csv. μP has 2^-7 at both widths, and is the same
network at width 64. Theory (Yang et al. 2022) makes no promise for weight decay, nor for the
learning rate against batch, length and steps: there transfer is only observed.

A drift alone says little where the loss hardly depends on a value. So each row has what the value
tuned at the small size costs at the large one: the loss there above the best of the grid. Where
all values on one side of the best cost less than 0.02 nats, nothing is tested on that side; the
last lines name those panels.

Refuted by: under μP, a panel whose cost is above 0.02 nats, about what seeds differ by.

The multipliers have three seeds, since one chose a value that the others do not; all else has one.
The CSV is written panel by panel, and the same command goes on after an interruption.
"""
import math

import transfer  # first of ours: it sets the path
from mutransfer import best_lr
from PIL import Image
from tinymup.lab import optimum
from tinymup.lab.config import Config
from tinymup.lab.plot import BLUE, MARKERS, ORANGE, PURPLE, SKY, draw_curve, legend, plt, save

ENOUGH, LR = 0.02, 2.0**-7
LRS, SP_LRS = [2.0**e for e in range(-10, -4)], [2.0**e for e in range(-11, -5)]
SIZES = {"batch": [4, 16, 64], "seq": [16, 64, 256], "steps": [75, 300, 1200],
         "head_dim": [16, 32, 64]}
FACTORS = [2.0 ** (1.5 * i) for i in range(-2, 3)]
# Panel: (field, values). λ of the two forms shrinks weights equally where --lr is 2^-7. Under μP it
# is, at both widths, so both panels have the same runs; SP's tell the forms apart.
MULTIPLIERS, SEEDS = ["output_mult", "attn_mult", "embed_mult", "init_scale"], [0, 1, 2]
TUNED = {**{name: (name, FACTORS) for name in MULTIPLIERS},
         "λ, independent": ("weight_decay", [2.0**e for e in range(-15, -5, 2)]),
         "λ, coupled": ("weight_decay", [2.0**e for e in range(-8, 2, 2)]),
         "ε": ("eps", [1e-8 * 2.0**e for e in range(-6, 19, 6)]),
         "1 − β₂": ("betas", [(0.9, 1 - 0.01 * 4.0**i) for i in range(-3, 4)])}
VARIED = {"param", "width", "lr", "decay_form", *SIZES, *(field for field, _ in TUNED.values())}
NAMES = {"sp": "SP", "mup": "μP"}
LOOKS = {key: {"color": colour, "marker": marker, "markersize": 4} for key, colour, marker in zip(
    [("mup", 0), ("mup", 1), ("mup", 2), ("sp", 2), ("sp", 0)],
    ["grey", SKY, BLUE, ORANGE, PURPLE], MARKERS)}
TOPS = [0.2, 0.2, 0.1]   # of the rows of the figure, nats above the lowest point of a curve


def panels():
    """{panel: {(parametrization, rank of the size): (fixed options, field, its values)}}

    The rank is 0 for the small size, 2 for the large one. SP lacks the middle. At width 64, the
    base, it is μP's network and has no curve of its own.
    """
    found = {name: {(param, i): ({"param": param, "width": 128, name: sizes[i]}, "lr", lrs)
                    for param, ranks, lrs in (("mup", (0, 1, 2), LRS), ("sp", (0, 2), SP_LRS))
                    for i in ranks}
             for name, sizes in SIZES.items()}
    sp = best_lr(transfer.read("lr_transfer"), "sp", 256)
    for name, tuned in TUNED.items():
        form = {"decay_form": "coupled" if name == "λ, coupled" else "independent"}
        found[name] = {(param, i): (form | {"param": param, "width": width, "lr": lr}, *tuned)
                       for param, i, width, lr in (("mup", 0, 64, LR), ("mup", 2, 256, LR),
                                                   ("sp", 2, 256, sp))}
    return found


def train(flags):
    """Trains panel by panel. The CSV holds those that are finished."""
    grids = []
    for name, curves in panels().items():
        for fixed, field, values in curves.values():
            seeds = SEEDS if name in MULTIPLIERS else SEEDS[:1]
            grids.append((Config(**fixed), {field: values, "seed": seeds}))
        transfer.train("what_transfers", grids, flags)


def plain(field, value):
    """The value of an option, from a Config or a CSV, as a number for the axis if it has one."""
    if field != "betas":
        return value
    return round(1 - float(str(value).strip("()").split(",")[1]), 9)


def points(records, fixed, field, values):
    """The curve against one option, with others fixed or at their defaults."""
    default, found = {f: getattr(Config(), f) for f in VARIED}, {}
    wanted = {plain(field, value) for value in values}       # not the λ of 0 of other panels
    for r in records:
        c = default | r["config"]                # the CSV lacks what does not vary
        if plain(field, c[field]) in wanted and all(
                plain(f, c[f]) == plain(f, (default | fixed)[f]) for f in VARIED - {field}):
            found.setdefault(plain(field, c[field]), {})[c["seed"]] = r["loss"]
    shared = set.intersection(*map(set, found.values())) if found else set()    # like for like
    return optimum.of_seeds([optimum.point(*item) for item in sorted(found.items())], shared)


def measured(records):
    """{panel: {(parametrization, rank): [Point, …]}} of the panels that have run."""
    found = {name: {key: points(records, *curve) for key, curve in curves.items()}
             for name, curves in panels().items()}
    return {name: curves for name, curves in found.items()
            if all(len(curve) > 1 for curve in curves.values())}


def carried(curves, param):
    """(log2 of the best at the small size, of that at the large, whether both are exact, cost)

    By the mean over the seeds that both sizes have: like for like.
    """
    small, large = curves.get((param, 0), curves["mup", 0]), curves[param, 2]
    shared = set(small[0].by_seed) & set(large[0].by_seed)
    small, large = (optimum.of_seeds(curve, shared) for curve in (small, large))
    first, last = optimum.optimum(small), optimum.optimum(large)
    tuned = transfer.best_point(small).lr
    there, = [math.inf if p.loss is None else p.loss for p in large if p.lr == tuned]
    return first.log2_lr, last.log2_lr, first.exact and last.exact, there - last.loss


def sides(curve):
    """What the values below and above the best one cost, 0 for the best itself."""
    losses = [math.inf if p.loss is None else p.loss for p in curve]
    best = losses.index(min(losses))
    return {"low": [loss - losses[best] for loss in losses[:best + 1]],
            "high": [loss - losses[best] for loss in losses[best:]]}


def report(found):
    """A row per panel: the best values as log2, drift and cost, under μP and SP; the verdict."""
    lines = [f"{'':16}" + "".join(f"{name + ' small':>10}{'large':>8}{'octaves':>9}{'cost':>7} "
                                  for name in NAMES.values())]
    against, untested = [], {"low": [], "high": []}
    for name, curves in found.items():
        of = {param: carried(curves, param) for param in NAMES}
        lines.append(f"{name:16}" + "".join(
            f"{first:>10.2f}{last:>8.2f}{last - first:>+8.2f}{' ' if exact else '?'}{cost:>7.3f} "
            for first, last, exact, cost in of.values()))
        for side, costs in sides(curves["mup", 2]).items():
            untested[side] += [name] * (max(costs) < ENOUGH)
        *_, cost = of["mup"]
        against += [f"{name} costs {cost:.3f}"] * (cost > ENOUGH)
    lines.append("log2 of the best value; ?: at the edge of its grid, or beside divergence; cost: "
                 "nats that\nthe value tuned at the small size loses at the large one")
    return "\n".join([*lines, transfer.verdict(against), *(
        f"under μP no value too {side} for it is in the grid: {', '.join(names) or 'nowhere'}"
        for side, names in untested.items())])


def draw(found):
    """A panel per option. What a value costs is told from the lowest point of its curve.

    Losses themselves differ more from size to size than along a curve, and would flatten it.
    """
    figure, axes = plt.subplots(3, 4, figsize=(9.6, 7.2), sharey="row")
    for row, top in zip(axes, TOPS):
        row[0].set_ylim(-0.2 * top, top)
    for ax, (name, curves) in zip(axes.flat, found.items()):
        for i, (key, curve) in enumerate(curves.items()):
            draw_curve(ax, above_lowest(curve), LOOKS[key], 0.97 - 0.04 * i)
        ax.axhspan(0, ENOUGH, color="grey", alpha=0.2, linewidth=0)
        drifts = {param: carried(curves, param) for param in NAMES}
        sizes = f"{name} {', '.join(map(str, SIZES[name]))}\n" if name in SIZES else ""
        ax.set_title(sizes + ", ".join(
            f"{NAMES[param]} {last - first:+.2f}" + ("" if exact else " (?)")
            for param, (first, last, exact, _) in drifts.items()), fontsize=9)
        ax.set_xlabel("log2 learning rate" if name in SIZES else f"log2 {name}")
        ax.grid(False)
    for ax in axes.flat[len(found):]:
        ax.set_visible(False)
    figure.supylabel("held-out loss less the lowest of its curve, nats per byte\n"
                     "(cut above; the last row is zoomed in)", fontsize=9)
    names = ("smallest size; width 64", "middle size", "largest size; width 256",
             "SP, largest size; width 256", "SP, smallest size")
    star = {"marker": "*", "markersize": 14, "markeredgecolor": "black", "linestyle": ""}
    legend(figure, dict(zip(names, LOOKS.values())) | {
        "best value (vertex)": star | {"color": "grey"},
        "at an edge (?)": star | {"color": "white"},
        f"within {ENOUGH} nats": {"color": "grey", "alpha": 0.2, "linewidth": 8}})
    most = max(p.seeds for curves in found.values() for curve in curves.values() for p in curve)
    path = transfer.FIGURES / "what_transfers.png"
    save(figure, path, "Drift of the best value in octaves, from the smallest size to the largest; "
         "one seed" + f" ({most} for the multipliers)" * (most > 1)
         + "\n(?): an optimum at the edge of the grid or beside divergence; ×: a seed diverged")
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)    # a third as large


def above_lowest(curve):
    """The points of a curve with their losses less its lowest."""
    lowest = transfer.best_point(curve).loss
    return [p if p.loss is None else p._replace(
        loss=p.loss - lowest, low=p.low - lowest, high=p.high - lowest) for p in curve]


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        train(flags)
    found = measured(transfer.read("what_transfers"))
    print(report(found))
    draw(found)
