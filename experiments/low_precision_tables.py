"""Tables and figure of low_precision.py, from the rows of its CSV."""
import math
import statistics

import transfer  # first: it sets the path
from tinymup.lab.plot import BLACK, BLUE, ORANGE, plt, save

NAME, ENOUGH, SEEDS = "low_precision", 0.02, [0, 1, 2]            # ENOUGH in nats
STATED = {"umup": 0, "sp": 16, "mup": 16}                # log2 of the loss scale that is claimed
FORMATS = ["float", "bf16", "fp16", "fp8"]
ROUNDED = {"noncritical": "query, key, value, up", "all": "all matrices"}   # in words
# (width, blocks, steps), short runs first: log2 of the loss scales. Below 1 they are u-μP's only.
SETTINGS = {(64, 2, 300): range(-8, 25, 4), (128, 2, 300): range(-8, 25, 4),
            (64, 8, 300): range(-8, 25, 4), (64, 2, 3000): range(0, 25, 8),
            (256, 2, 300): range(-8, 25, 8)}
DEFAULTS = {"depth": 2, "steps": 300, "rounded": "noncritical", "loss_scale": 1.0}
STYLES = {"sp": ("SP", ORANGE, "s-"), "mup": ("μP", BLUE, "o--"), "umup": ("u-μP", BLACK, "^-")}


def families(setting):
    """The parametrizations to train: at the base width SP stands for μP too."""
    return ("sp", "umup") if setting[0] == 64 else ("sp", "mup", "umup")


def name(param, setting):
    """The family as in print."""
    return "SP = μP" if (param, setting[0]) == ("sp", 64) else STYLES[param][0]


def words(setting):
    """The setting as in print."""
    width, depth, steps = setting
    return (f"width {width}" + f", {depth} blocks" * (depth != 2)
            + f", {steps:,} steps" * (steps != 300))


def tables(records, seed=SEEDS[0]):
    """{(setting, param): {(format, rounded, log2 scale, log2 lr): loss, inf if it diverged}}"""
    losses = {}
    for r in records:
        c = DEFAULTS | r["config"]
        if c["seed"] != seed:
            continue
        cells = losses.setdefault(((c["width"], c["depth"], c["steps"]), c["param"]), {})
        key = c["matmul_format"], c["rounded"], math.log2(c["loss_scale"]), math.log2(c["lr"])
        cells[key] = math.inf if r["loss"] is None else r["loss"]
    return losses


def at_scale(cells, format, rounded="noncritical", scale=0):
    """{log2 lr: loss}"""
    return {lr: loss for (f, r, s, lr), loss in sorted(cells.items())
            if (f, r, s) == (format, rounded, scale)}


def best_lr(cells):
    """log2 of the lr with the lowest loss in float32."""
    exact = at_scale(cells, "float")
    return min(exact, key=exact.get)


def gaps(cells, format="fp8", rounded="noncritical"):
    """{log2 scale: loss less that in float32}, at the float32 optimum."""
    lr = best_lr(cells)
    exact = cells["float", "noncritical", 0, lr]
    return {s: loss - exact for (f, r, s, at), loss in sorted(cells.items())
            if (f, r, at) == (format, rounded, lr)}


def octaves(gap):
    """The longest row of neighbouring scales that are all good enough, in words."""
    rows, scales = [[]], list(gap)
    for s in scales:
        rows = rows + [[]] if gap[s] > ENOUGH else rows[:-1] + [rows[-1] + [s]]
    best = max(rows, key=len)
    if not best:
        return "none"
    open_ends = (best[0] == scales[0]) + (best[-1] == scales[-1])
    return (f"{best[-1] - best[0]:g}" + "+" * bool(open_ends)
            + f" (2^{best[0]:g} to 2^{best[-1]:g})")


def present(losses):
    """The settings that the CSV has, with all their families."""
    return [s for s in SETTINGS if all((s, param) in losses for param in families(s))]


def report(records):
    """Gaps without a loss scale; in FP8 with each; the verdicts. ? marks the edge of a grid."""
    losses = tables(records)
    lines = [f"{'':29}{'float32':>8}{'log2 lr*':>9}" + "".join(f"{f:>8}" for f in FORMATS[1:])
             + "   fp8 at its own best lr"]
    for setting in present(losses):
        for param in families(setting):
            cells = losses[setting, param]
            best, exact, fp8 = best_lr(cells), at_scale(cells, "float"), at_scale(cells, "fp8")
            own = min(fp8, key=fp8.get)
            lines.append(
                f"{words(setting):22}{name(param, setting):7}{exact[best]:>8.3f}{best:>8g}"
                + marked(best, exact)
                + "".join(f"{gaps(cells, f)[0]:>+8.3f}" if 0 in gaps(cells, f) else f"{'':8}"
                          for f in FORMATS[1:])
                + (f"{fp8[own] - exact[best]:>+9.3f} at 2^{own:g}{marked(own, fp8)}".rstrip()
                   if len(fp8) > 1 else ""))
    return "\n".join([*lines, "", *scale_lines(losses), "", *verdicts(losses, records)])


def marked(lr, losses):
    """? if an lr is at the edge of its grid, else a space."""
    return "?" if lr in (min(losses), max(losses)) else " "


def scale_lines(losses):
    """A row of gaps per setting, rounding and family, and the octaves that are good enough."""
    scales = range(-8, 25, 4)
    yield f"{'gap in fp8 at loss scale':40}" + "".join(f"{f'2^{s}':>7}" for s in scales) + (
        f"   octaves within {ENOUGH}")
    for setting in present(losses):
        for rounded in ROUNDED:
            for param in families(setting):
                gap = gaps(losses[setting, param], rounded=rounded)
                if len(gap) > 1:
                    yield (f"{words(setting):22}{rounded:12}{name(param, setting):6}"
                           + "".join(f"{gap[s]:>+7.3f}" if s in gap else f"{'':7}" for s in scales)
                           + f"   {octaves(gap)}")


def stated(losses, records, param):
    """{(setting, rounded): [gap of each seed]} in FP8, at the loss scale that is claimed.

    The other seeds have one learning rate, the float32 optimum of the first.
    """
    by_seed, found = [tables(records, seed) for seed in SEEDS], {}
    for setting in present(losses):
        family = param if param in families(setting) else "sp"
        for rounded in ROUNDED:
            each = [gaps(cells[setting, family], rounded=rounded).get(STATED[param])
                    for cells in by_seed if (setting, family) in cells]
            found[setting, rounded] = [gap for gap in each if gap is not None]
    return {cell: each for cell, each in found.items() if each}


def verdicts(losses, records):
    """A sentence on u-μP at scale 1, on each rival with one scale for all, and on BF16."""
    for param, scale in STATED.items():
        each = stated(losses, records, param)
        if each:
            over = [f"{words(at)} {rounded} {statistics.mean(gap):+.3f} ({min(gap):+.3f} to "
                    f"{max(gap):+.3f})" for (at, rounded), gap in each.items()
                    if statistics.mean(gap) > ENOUGH]
            yield (f"{STYLES[param][0]} at loss scale 2^{scale}, {len(each)} cells, mean of "
                   f"{min(map(len, each.values()))} seed(s): largest gap "
                   f"{max(map(statistics.mean, each.values())):+.3f}; above {ENOUGH}: "
                   f"{'; '.join(over) or 'none'}")
    each = {(words(s), name(param, s)): gap[0] for (s, param), cells in losses.items()
            if 0 in (gap := gaps(cells, "bf16"))}
    over = [f"{at} {family} {gap:+.3f}" for (at, family), gap in each.items() if gap > ENOUGH]
    yield (f"bf16, {len(each)} of {len(losses)} cells: largest gap {max(each.values()):+.3f}; "
           f"above {ENOUGH}: {'; '.join(over) or 'none'}")


def draw(losses):
    """Gap against loss scale: a row per rounding, a column per setting."""
    settings = present(losses)
    rows = [rounded for rounded in ROUNDED
            if any(gaps(cells, rounded=rounded) for cells in losses.values())]
    size = max(6.5, 0.9 + 1.8 * len(settings)), 1.0 + 2.3 * len(rows)
    figure, axes = plt.subplots(len(rows), len(settings), figsize=size, sharex=True, sharey=True,
                                squeeze=False)
    finite = [gap for cells in losses.values() for rounded in ROUNDED
              for gap in gaps(cells, rounded=rounded).values() if gap < math.inf]
    top = max(finite) * 1.3
    for row, rounded in zip(axes, rows):
        for ax, setting in zip(row, settings):
            for param in families(setting):
                gap = gaps(losses[setting, param], rounded=rounded)
                _, colour, style = STYLES[param]
                ax.plot(list(gap), [min(g, top) for g in gap.values()], style, color=colour,
                        markersize=4, linewidth=1.3, label=name(param, setting))
                gone = [s for s, g in gap.items() if g == math.inf]
                ax.plot(gone, [top] * len(gone), "x", color=colour, markersize=10)
            ax.axhspan(-ENOUGH, ENOUGH, color="gray", alpha=0.2, linewidth=0)
            ax.set_title(f"{words(setting)}\n{ROUNDED[rounded]}", fontsize=9)
            ax.set_yscale("symlog", linthresh=ENOUGH, linscale=0.7)
    ticks = [-0.02, 0, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4]
    axes[0][0].set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes[0][0].minorticks_off()
    axes[0][0].set_xticks(range(-8, 25, 8))
    axes[0][0].set_ylim(-0.03, top * 1.2)
    for ax in axes[-1]:
        ax.set_xlabel("log2 loss scale", fontsize=9)
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.supylabel("loss in FP8 − loss in float32, nats per byte", fontsize=9)
    save(figure, transfer.FIGURES / f"{NAME}.png",
         "FP8 (simulated) against the loss scale, seed 0 (the verdict is by three); symlog axis\n"
         "grey: within 0.02 nats of float32; at width 64 SP and μP are one network")
