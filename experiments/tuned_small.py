"""Tuned at the smallest width, used at all others: table, verdict, and lr_transfer.py's figure.

The figure reads lr_transfer.csv and, where there are such files, umup_transfer.csv and
muon_transfer.csv. Each rule's learning rate is the best of its grid at the smallest width. It is
then used unchanged; the rival SP·1/width divides it by the growth of the width. The oracle is the
best lr of each width's own grid. The lr is a point of the grid, not the vertex of a parabola,
because it has to have been run.
"""
import math
import statistics

import umup_transfer  # first: it sets the path
from transfer import FIGURES, RESULTS, best_point, curve, read, verdict
from tinymup.lab.optimum import MOVES, STAYS, in_words, movement
from tinymup.lab.plot import BLACK, BLUE, ORANGE, PURPLE, SKY, legend, plt, save

PER_WIDTH = "SP·1/width"
LEVEL = 0.0005     # nats: what three decimals do not show
LOOKS = {"SP": (BLACK, "o", "-"), PER_WIDTH: (ORANGE, "s", "--"), "μP": (BLUE, "^", "-"),
         "u-μP": (SKY, "D", "-."), "Muon": (PURPLE, "v", "-")}       # colour, marker, line


def groups():
    """{name of a rule: {width: [Point, …]}}, as far as there are results."""
    def of(name, kept):
        records = read(name) if (RESULTS / f"{name}.csv").exists() else []
        found = [r for r in records if kept(r["config"])]
        return curve(found) if found else None

    def plain_muon(c):                   # at 2048 it has one seed only
        return (c["muon_scale"], c["momentum_form"], c["param"]) == ("spectral", "ema", "mup") and (
            c["width"] <= 1024)
    found = {"SP": of("lr_transfer", lambda c: c["param"] == "sp"),
             "μP": of("lr_transfer", lambda c: c["param"] == "mup"),
             "u-μP": of("umup_transfer", umup_transfer.at_one),
             "Muon": of("muon_transfer", plain_muon)}
    return {name: by_width for name in LOOKS
            if (by_width := found["SP" if name == PER_WIDTH else name])}


def tuned(name, by_width):
    """(best lr at the smallest width, {width: the Point at the rule's lr, or None})"""
    base = min(by_width)
    lr = best_point(by_width[base]).lr
    return lr, {width: next((p for p in points if p.loss is not None and p.lr == (
        lr * base / width if name == PER_WIDTH else lr)), None)
        for width, points in by_width.items()}


def table(found):
    """A row per rule and oracle: the loss at each width, and its range over seeds."""
    widths = sorted({width for by_width in found.values() for width in by_width})
    column = max(17, *(len(name) + 1 for name in found))
    lines = ["tuned at the smallest width: held-out loss, nats per byte, mean (range, seeds)",
             f"{'':{column}}{'log2 lr':>8}" + "".join(f"{width:>24}" for width in widths)]
    for name in found:
        lr, used = tuned(name, found[name])
        oracle = {width: best_point(points) for width, points in found[name].items()}
        for label, row in [(name, used)] + [("  its oracle", oracle)] * (name != PER_WIDTH):
            cells = ["" if w not in row else "no run" if row[w] is None else
                     f"{row[w].loss:.3f} ({row[w].low:.3f}–{row[w].high:.3f}, {row[w].seeds})"
                     for w in widths]
            start = f"{math.log2(lr):g}" if row is used else ""
            lines.append(f"{label:{column}}{start:>8}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def leads(found, ours):
    """{rule: {width: how far ours is ahead of it}}, each at its lr of the smallest width.

    In nats, the mean over the seeds that both have run: like for like.
    """
    used = {name: tuned(name, by_width)[1] for name, by_width in found.items()}
    ahead = {name: {} for name in found if name != ours}
    for name, by_width in ahead.items():
        for width in sorted(used[ours].keys() & used[name].keys()):
            if None not in (pair := (used[ours][width], used[name][width])):
                own, other = (point.by_seed for point in pair)
                by_width[width] = statistics.mean(
                    other[seed] - own[seed] for seed in own.keys() & other.keys())
    return ahead


def told(ahead, ours):
    """A line per rule of `leads`."""
    return "\n".join(f"lead of {ours} over {name}: " + ", ".join(
        f"{lead:+.3f} at {width}" for width, lead in by_width.items())
        for name, by_width in ahead.items())


def beside(sp, mup):
    """`table` and verdict of SP, its rival and μP, each {width: [Point, …]}."""
    table_of_all = table({"SP": sp, PER_WIDTH: sp, "μP": mup})
    return f"{table_of_all}\n{verdict_on_transfer({'SP': sp, 'μP': mup})}"


def verdict_on_transfer(found):
    """Whether SP's best lr moves and that of the others stays; who is ahead at the largest width.

    found: {"SP", "μP" and others: {width: [Point, …]}}
    """
    against = []
    for name, by_width in found.items():
        moved = movement(by_width)
        if moved.octaves is None:
            against.append(f"{name} has no best lr")
        elif moved.octaves > -MOVES if name == "SP" else abs(moved.octaves) > STAYS:
            against.append(f"{name}'s best lr moves by {in_words(moved)}")
    last = max(found["μP"])
    ours, rival = (tuned(name, found[rule])[1][last].loss
                   for name, rule in (("μP", "μP"), (PER_WIDTH, "SP")))
    won = "is level" if abs(rival - ours) < LEVEL else "wins" if rival < ours else "loses"
    return (f"{verdict(against)}; at width {last}, tuned at {min(found['μP'])}: μP "
            f"{ours:.3f}, {PER_WIDTH} {rival:.3f}: the rival {won}")


def draw():
    """Draws figures/tuned_small.png and returns the table."""
    found = groups()
    figure, ax = plt.subplots(figsize=(8, 4.6))
    ends = {}
    for name in found:
        color, marker, style = LOOKS[name]
        points = {width: p for width, p in tuned(name, found[name])[1].items() if p}
        ax.plot(list(points), [p.loss for p in points.values()], style, color=color, marker=marker)
        ax.fill_between(list(points), [p.low for p in points.values()],
                        [p.high for p in points.values()], color=color, alpha=0.2, linewidth=0)
        ends[name] = max(points), points[max(points)].loss
        if name != PER_WIDTH:
            oracle = [best_point(points).loss for points in found[name].values()]
            ax.plot(list(found[name]), oracle, ":", color=color, linewidth=1, zorder=4)
    base, *_, last = widths = sorted({w for by_width in found.values() for w in by_width})
    ax.set_xscale("log", base=2)
    ax.set_xticks(widths, list(map(str, widths)))
    height = -math.inf
    for name, (width, loss) in sorted(ends.items(), key=lambda end: end[1][1]):
        height = max(loss, height + 0.05 * (ax.get_ylim()[1] - ax.get_ylim()[0]))
        ax.annotate(name, (width, loss), (last * 1.12, height), color=LOOKS[name][0], va="center",
                    fontweight="bold", arrowprops={"arrowstyle": "-", "color": "grey",
                                                   "linewidth": 0.5})
    ax.set(xlim=(base * 0.93, last * 2.6), xlabel="width",
           ylabel="held-out loss, nats per byte")
    legend(figure, {f"lr tuned at width {base}": {"color": "grey"},
                    "lr tuned at each width (oracle)": {"color": "grey", "linestyle": ":"}})
    seeds = {name: sorted({p.seeds for points in by_width.values() for p in points})
             for name, by_width in found.items() if name != PER_WIDTH}
    save(figure, FIGURES / "tuned_small.png",
         f"Tuned at width {base}, used at every width: Transformer on Python source, 300 steps;\n"
         "mean and range of seeds (" + ", ".join(
             f"{name}: {' to '.join(map(str, count))}" for name, count in seeds.items()) + ")")
    return table(found)
