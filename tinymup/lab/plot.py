"""Figures, from what `optimum.curves` and the coordinate check return."""
import math
import os

os.environ["MPLBACKEND"] = "Agg"   # writes files, needs no screen; another name may not exist
import matplotlib.pyplot as plt  # noqa: E402

from ..scaling import PARAMETRIZATIONS  # noqa: E402
from .optimum import in_words, movement, optimum  # noqa: E402


def shades(count):
    """So many colours from dark to light, told apart in print and by colour-blind readers."""
    return plt.get_cmap("viridis")([0.9 * i / max(1, count - 1) for i in range(count)])


def named(label):
    """The label of a group with names as in print: μP for mup."""
    return ", ".join(PARAMETRIZATIONS[part].title.split(",")[0].split(" (")[0]
                     if part in PARAMETRIZATIONS else part for part in label.split(", "))


def loss_against_lr(size, groups, path, title=None):
    """A panel per group: a curve per size with the band of its seeds and a star at its optimum.

    The star is hollow at the edge of the grid and beside divergence. A cross marks a run without a
    loss, which diverged or failed. The loss axis is shared, and cut a little above the worst
    optimum.
    """
    optima = {label: {s: optimum(points) for s, points in by_size.items()}
              for label, by_size in groups.items()}
    found = [best.loss for by_size in optima.values() for best in by_size.values() if best]
    if not found:
        raise ValueError("no run has a loss: nothing to plot; choose smaller learning rates")
    span = max(max(found) - min(found), 0.5)
    bottom, top = min(found) - 0.1 * span, max(found) + 0.6 * span
    figure, axes = plt.subplots(1, len(groups), figsize=(0.8 + 4.2 * len(groups), 4.2),
                                sharey=True, squeeze=False, layout="constrained")
    all_sizes = sorted({s for by_size in groups.values() for s in by_size})
    colours = dict(zip(all_sizes, shades(len(all_sizes))))
    for ax, (label, by_size) in zip(axes[0], groups.items()):
        for s, points in by_size.items():
            height = top - 0.02 * (top - bottom) * (1 + 2 * all_sizes.index(s))   # of the crosses
            draw_curve(ax, points, optima[label][s], height, color=colours[s], label=f"{size} {s}")
        moved = movement(by_size)
        words = "" if len(by_size) < 2 or moved.octaves is None else (
            f"\nbest lr moves by {in_words(moved)}" + ("" if moved.exact else " (?)"))
        ax.set_title(named(label) + words, fontsize=10)
        ax.set_xlabel("log2 learning rate")
        ax.set_ylim(bottom, top)
        ax.grid(alpha=0.3)
    axes[0][0].set_ylabel("held-out loss, nats per byte")
    axes[0][-1].legend(fontsize=8)
    save(figure, path, title)


def draw_curve(ax, points, best, height, color, label):
    """One size: its losses, the range of its seeds, its optimum, and what has no loss."""
    drawn = [p for p in points if p.loss is not None]
    x = [math.log2(p.lr) for p in drawn]
    ax.plot(x, [p.loss for p in drawn], "-o", color=color, markersize=3, label=label)
    ax.fill_between(x, [p.low for p in drawn], [p.high for p in drawn], color=color, alpha=0.2,
                    linewidth=0)
    gone = [math.log2(p.lr) for p in points if p.loss is None]
    ax.plot(gone, [height] * len(gone), "x", color=color)
    if best:
        ax.plot(best.log2_lr, best.loss, "*", color=color, markersize=15, markeredgecolor="black",
                zorder=3, markerfacecolor=color if best.exact else "white")


def sizes_against_width(panels, path, title=None):
    """Log-log lines of size against width, a row of panels per parametrization.

    panels: {row label: {column label: {name: {width: size}}}}. A column shares its axes.
    """
    columns = list(next(iter(panels.values())))
    figure, axes = plt.subplots(
        len(panels), len(columns), sharex=True, sharey="col", squeeze=False, layout="constrained",
        figsize=(1 + 4.2 * len(columns), 0.6 + 2.9 * len(panels)))
    for row, (label, by_column) in zip(axes, panels.items()):
        for ax, column in zip(row, columns):
            for i, (name, by_width) in enumerate(by_column[column].items()):
                ax.plot(list(by_width), list(by_width.values()), "-o", markersize=3, label=name,
                        color=plt.get_cmap("tab20")(i % 20))
            ax.set_xscale("log", base=2)
            ax.set_yscale("log", base=2)
            ax.set_title(f"{named(label)}: {column}", fontsize=9)
            ax.grid(alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("width")
        ax.legend(fontsize=5.5, ncols=2)
    save(figure, path, title)


def save(figure, path, title):
    """Writes the figure with its title."""
    if title:
        figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=90)
    plt.close(figure)
