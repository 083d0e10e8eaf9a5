"""Figures. The only file that imports matplotlib; it draws what `sweep.curves` read from the results file."""
import math

import matplotlib

matplotlib.use("Agg")   # files, no windows: works on a machine without a screen
import matplotlib.pyplot as plt  # noqa: E402

from .sweep import drift, optimum  # noqa: E402


def loss_against_lr(size, groups, path, title=None):
    """One panel per group with a shared loss axis: a curve per size, the band of its seeds, its optimum marked, × where a run
    has no loss (it diverged or failed). The top is cut where a curve rises far above the worst optimum."""
    optima = {label: {s: optimum(points) for s, points in by_size.items()} for label, by_size in groups.items()}
    found = [best.loss for by_size in optima.values() for best in by_size.values() if best]
    if not found:
        raise ValueError("no run has a loss: nothing to plot; choose smaller learning rates")
    bottom, top = min(found), max(found)
    top += 0.6 * max(top - bottom, 0.5)
    bottom -= 0.06 * (top - bottom)
    figure, axes = plt.subplots(1, len(groups), figsize=(0.8 + 4.2 * len(groups), 4.2), sharey=True, squeeze=False, layout="constrained")
    sizes = sorted({s for by_size in groups.values() for s in by_size})
    colours = dict(zip(sizes, plt.get_cmap("viridis")([0.9 * i / max(1, len(sizes) - 1) for i in range(len(sizes))])))
    for ax, (label, by_size) in zip(axes[0], groups.items()):
        for s, points in by_size.items():
            drawn = [p for p in points if p.loss is not None]
            x = [math.log2(p.lr) for p in drawn]
            ax.plot(x, [p.loss for p in drawn], "-o", color=colours[s], markersize=3, label=f"{size} {s}", clip_on=True)
            ax.fill_between(x, [p.low for p in drawn], [p.high for p in drawn], color=colours[s], alpha=0.2, linewidth=0)
            gone = [math.log2(p.lr) for p in points if p.loss is None]
            ax.plot(gone, [top - 0.02 * (top - bottom) * (1 + 2 * sizes.index(s))] * len(gone), "x", color=colours[s])
            best = optima[label][s]
            if best:
                ax.plot(best.log2_lr, best.loss, "*", color=colours[s], markersize=15, markeredgecolor="black", zorder=3)
        octaves, exact = drift(by_size)
        moved = "" if len(by_size) < 2 or octaves is None else f"\nbest lr moves by {octaves:+.2f} octaves" + ("" if exact else " (?)")
        ax.set_title(label + moved, fontsize=10)
        ax.set_xlabel("log2 learning rate")
        ax.set_ylim(bottom, top)
        ax.grid(alpha=0.3)
    axes[0][0].set_ylabel("held-out loss, nats per byte")
    axes[0][-1].legend(fontsize=8)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def sizes_against_width(panels, path, title=None):
    """A row of panels per parametrization: log-log lines of size against width, one per named quantity.

    panels: {row label: {column label: {name: {width: size}}}}; each column shares its axes, so that a slope in one row shows beside none.
    """
    columns = list(next(iter(panels.values())))
    figure, axes = plt.subplots(len(panels), len(columns), figsize=(1 + 4.2 * len(columns), 0.6 + 2.9 * len(panels)),
                                sharex=True, sharey="col", squeeze=False, layout="constrained")
    for row, (label, by_column) in zip(axes, panels.items()):
        for ax, column in zip(row, columns):
            for i, (name, by_width) in enumerate(by_column[column].items()):
                ax.plot(list(by_width), list(by_width.values()), "-o", markersize=3, label=name, color=plt.get_cmap("tab20")(i % 20))
            ax.set_xscale("log", base=2)
            ax.set_yscale("log", base=2)
            ax.set_title(f"{label}: {column}", fontsize=9)
            ax.grid(alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("width")
        ax.legend(fontsize=5.5, ncols=2)
    if title:
        figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=90)
    plt.close(figure)
