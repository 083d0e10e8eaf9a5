"""The gallery's first figure: how far the best learning rate moves with width and with depth.

    python experiments/summary.py

Reads the results of lr_transfer, umup_transfer, muon_transfer and depth_transfer, and trains
nothing. A drift of at most half an octave counts as "stays".
"""
import math

import depth_transfer  # first: it sets the path
import muon_transfer
import tuned_small
from transfer import FIGURES, RESULTS, read
from tinymup.lab.optimum import STAYS, curves, movement
from tinymup.lab.plot import BLUE, ORANGE, legend, plt, save


def drifts():
    """{range of sizes: {rule: `Movement`}}, both from top to bottom."""
    found = {}
    for name, by_width in tuned_small.groups().items():
        moved = movement(by_width)
        if name == tuned_small.PER_WIDTH:     # SP's curve in another unit: lr · width
            octaves = math.log2(max(by_width) / min(by_width))
            moved = moved._replace(octaves=moved.octaves + octaves,
                                   by_seed=[seed + octaves for seed in moved.by_seed])
        found.setdefault(f"width {min(by_width)} to {max(by_width)}", {})[
            name + ", spectral" * (name == "Muon")] = moved
    if (RESULTS / "muon_transfer.csv").exists():
        for name, by_width in muon_transfer.named_groups(read("muon_transfer")).items():
            if name != "spectral":            # which stands beside the other rules
                found.setdefault(f"width {min(by_width)} to {max(by_width)}", {})[
                    f"Muon, {name}"] = movement(by_width)
    if (RESULTS / "depth_transfer.csv").exists():
        size, groups = curves(depth_transfer.labelled(read("depth_transfer")))
        for label, by_depth in groups.items():
            found.setdefault(f"{size} {min(by_depth)} to {max(by_depth)}", {})[
                label.removeprefix("μP, ")] = movement(by_depth)
    return found


def draw(found):
    """A row per rule: a dot at its drift, a bar at that of each seed."""
    rows = [(title, rule, moved) for title, rules in found.items()
            for rule, moved in rules.items() if moved.octaves is not None]
    figure, ax = plt.subplots(figsize=(8, 1.6 + 0.27 * (len(rows) + len(found))))
    ax.axvspan(-STAYS, STAYS, color=BLUE, alpha=0.15, linewidth=0)
    ax.axvline(0, color="grey", linewidth=0.8)
    y, ticks, before = 0, {}, None
    for title, rule, moved in rows:
        if title != before:
            ticks[y] = r"$\bf{" + title.replace(" ", r"\ ") + "}$"
            before, y = title, y + 1
        color, marker = (BLUE, "o") if abs(moved.octaves) <= STAYS else (ORANGE, "s")
        ax.plot(moved.octaves, y, marker, color=color, markersize=8, markeredgecolor="black",
                markerfacecolor=color if moved.exact else "white")
        ax.plot(moved.by_seed, [y] * len(moved.by_seed), "|", color="black", markersize=13)
        ax.text(1.01, y, f"{moved.octaves:+.2f}" + " (?)" * (not moved.exact), va="center",
                transform=ax.get_yaxis_transform())
        ticks[y], y = rule, y + 1
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.set(ylim=(y - 0.4, -0.6), xlabel="octaves by which the best learning rate moves")
    ax.text(0, -0.05, "stays: ±½", ha="center", va="center", color=BLUE)
    dot = {"marker": "o", "markersize": 8, "markeredgecolor": "black", "linestyle": ""}
    legend(figure, {"stays": dot | {"color": BLUE},
                    "moves or drifts": dot | {"marker": "s", "color": ORANGE},
                    "an optimum at an edge or beside divergence (?)": dot | {"color": "white"},
                    "a seed": {"marker": "|", "color": "black", "markersize": 13, "linestyle": ""}})
    save(figure, FIGURES / "summary.png", "How far the best learning rate moves, "
         "by the mean of the seeds that all sizes share")


if __name__ == "__main__":
    found = drifts()
    for title, rules in found.items():
        print(title)
        for rule, moved in rules.items():
            seeds = ", ".join(f"{octaves:+.2f}" for octaves in moved.by_seed)
            print(f"  {rule:24}" + ("no best lr" if moved.octaves is None else
                                    f"{moved.octaves:+6.2f}{' ' if moved.exact else '?'} {seeds}"))
    draw(found)
