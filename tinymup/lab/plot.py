"""Figures of loss against learning rate, and what all figures share: names, colours, sizes."""
import math
import os
from itertools import cycle

os.environ["MPLBACKEND"] = "Agg"   # draws to files, without a screen, whatever the user has set
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from ..scaling import PARAMETRIZATIONS  # noqa: E402
from .optimum import in_words, movement, optimum  # noqa: E402

plt.rcParams.update({"font.size": 9, "axes.titlesize": 10, "figure.titlesize": 10,
                     "axes.grid": True, "grid.alpha": 0.3, "figure.constrained_layout.use": True})
NAMES = {"sgd": "SGD", "adamw": "AdamW", "muon": "Muon", "muonclip": "MuonClip"} | {
    param: table.title.split(",")[0].split(" (")[0] for param, table in PARAMETRIZATIONS.items()}
# From Okabe and Ito's palette for colour-blind readers, without its red and green.
BLACK, ORANGE, BLUE, SKY, PURPLE = "#000000", "#E69F00", "#0072B2", "#56B4E9", "#CC79A7"
MARKERS = "os^Dv"


def named(label):
    """The label of a group with names as in print: μP for mup."""
    return ", ".join(NAMES.get(part, part) for part in label.split(", "))


def shades(count):
    """`count` colours from dark to light that stay distinct in print and to the colour-blind."""
    return plt.get_cmap("viridis")([0.9 * i / max(1, count - 1) for i in range(count)])


def panels(count, columns=3):
    """(figure, its axes, in rows of at most `columns`). They share the axis of losses."""
    rows = math.ceil(count / columns)
    across = math.ceil(count / rows)
    width = 1.2 + across * (2.9 if across == 3 else 4)
    figure, axes = plt.subplots(rows, across, sharey=True, squeeze=False,
                                figsize=(width, 0.9 + 3.1 * rows))
    for row in axes:
        row[0].set_ylabel("held-out loss, nats per byte")
    for ax in axes.flat[count:]:
        ax.remove()
    return figure, list(axes.flat[:count])


def loss_against_lr(size, groups, path, title=None):
    """Writes a figure with a panel per group, see `draw_losses`."""
    figure, axes = panels(len(groups))
    draw_losses(axes, size, groups)
    save(figure, path, title)


def draw_losses(axes, size, groups):
    """Fills a panel per group: its title, and a curve per size (`draw_curve`). One legend for all.

    The loss axis is cut a little above the worst optimum. Panels with a learning rate in common
    share its axis.
    """
    sizes = sorted({s for by_size in groups.values() for s in by_size})
    looks = {s: {"color": colour, "marker": marker, "markersize": 4}
             for s, colour, marker in zip(sizes, shades(len(sizes)), cycle(MARKERS))}
    lrs = [{p.lr for points in by_size.values() for p in points} for by_size in groups.values()]
    found = []
    for i, (ax, (label, by_size)) in enumerate(zip(axes, groups.items())):
        if i and lrs[i] & lrs[0]:
            ax.sharex(axes[0])
        for s, points in by_size.items():
            found.append(draw_curve(ax, points, looks[s], 0.98 - 0.04 * sizes.index(s)))
        moved = movement(by_size)
        words = "" if len(by_size) < 2 or moved.octaves is None else (
            f"\nbest lr moves by {in_words(moved)}" + ("" if moved.exact else " (?)"))
        ax.set(title=named(label) + words, xlabel="log2 learning rate")
        ax.xaxis.get_major_locator().set_params(integer=True)
    if not (losses := [best.loss for best in found if best]):
        raise ValueError("no learning rate has a loss for all seeds: choose smaller ones to plot")
    span = max(max(losses) - min(losses), 0.5)
    axes[0].set_ylim(min(losses) - 0.1 * span, max(losses) + 0.6 * span)
    star = {"marker": "*", "markersize": 12, "markeredgecolor": "black", "linestyle": ""}
    stars = {"best lr (vertex of the parabola)": star | {"color": "grey"},
             "at the grid's edge or beside divergence": star | {"color": "white"}}
    legend(axes[0].figure, {f"{size} {s}": look for s, look in looks.items()} | stars)


def draw_curve(ax, points, look, height):
    """Draws the losses of one size, bars over its seeds, and a star at its optimum.

    A line joins the points. Around an exact optimum it is the parabola with the star at its vertex;
    at the edge of the grid and beside divergence the star is hollow. A cross, at a height relative
    to the panel, marks a run without a loss. Returns the optimum, with the parabola's loss.
    """
    color, best, drawn = look["color"], optimum(points), [p for p in points if p.loss is not None]
    at, losses = [math.log2(p.lr) for p in drawn], [p.loss for p in drawn]
    x, y = at, losses
    if best and best.exact:
        i = y.index(min(y))
        parabola = np.polynomial.Polynomial.fit(x[i - 1:i + 2], y[i - 1:i + 2], 2)
        arc = np.linspace(x[i - 1], x[i + 1], 21)
        best = best._replace(loss=float(parabola(best.log2_lr)))
        x, y = [*x[:i - 1], *arc, *x[i + 2:]], [*y[:i - 1], *parabola(arc), *y[i + 2:]]
    ax.plot(x, y, color=color, linewidth=1.2)
    ax.plot(at, losses, linestyle="", **look)
    ax.vlines(at, [p.low for p in drawn], [p.high for p in drawn], color=color, alpha=0.4, lw=4)
    gone = [math.log2(p.lr) for p in points if p.loss is None]
    ax.plot(gone, [height] * len(gone), "x", color=color, transform=ax.get_xaxis_transform())
    if best:
        ax.plot(best.log2_lr, best.loss, "*", color=color, markersize=14, markeredgecolor="black",
                zorder=3, markerfacecolor=color if best.exact else "white")
    return best


def legend(figure, looks):
    """One legend below all panels, from {name: properties of a line}."""
    figure.legend([plt.Line2D([], [], **look) for look in looks.values()], list(looks),
                  loc="outside lower center", ncols=max(2, int(figure.get_figwidth() / 2.2)))


def save(figure, path, title=None):
    """Writes the figure with its title."""
    figure.suptitle(title)
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    plt.close(figure)
