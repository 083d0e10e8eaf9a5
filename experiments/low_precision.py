"""Claim: with the operands of its matrix products rounded to FP8, and no scale factor anywhere, u-μP trains to nearly the loss it has in
float32, where SP and μP lose more: their gradients lie below FP8's range, unit-scaled ones within it. BF16 costs nobody anything.

Refuted by: at its own best learning rate, a gap of u-μP in FP8 above 0.02 nats, or not below those of SP and μP; any gap in BF16 above 0.02.
(The formats are simulated. Differences below some 0.01 nats are within the noise of one seed.)
"""
import math

import transfer  # first: it sets the path
from tinymup.network import Config
from tinymup.plot import plt

WIDTHS, SEEDS, FORMATS = [64, 128], [0], ["float", "bf16", "fp16", "fp8"]
RATES = {"sp": [2.0**e for e in (-8, -7)], "mup": [2.0**e for e in (-7, -6)], "umup": [2.0**e for e in (-1, 0)]}   # around each optimum
GRIDS = [(Config(param=param), {"width": WIDTHS, "lr": RATES[param], "matmul_format": FORMATS, "seed": SEEDS}) for param in RATES]


def mean_losses(records):
    """{(param, width, format): {lr: mean loss over seeds, None where a run diverged}}"""
    losses = {}
    for r in records:
        c = r["config"]
        losses.setdefault((c["param"], c["width"], c["matmul_format"]), {}).setdefault(c["lr"], []).append(r["loss"])
    return {key: {lr: None if None in each else sum(each) / len(each) for lr, each in sorted(by_lr.items())} for key, by_lr in losses.items()}


def gaps(losses, param, width, format):
    """{lr: loss in format − loss in float32 at the same lr, inf where only the former diverged}"""
    exact = losses[param, width, "float"]
    return {lr: math.inf if loss is None else loss - exact[lr] for lr, loss in losses[param, width, format].items() if exact[lr] is not None}


def report(losses):
    """A row per parametrization and width: the best float32 loss, and the gap of each format at that learning rate and at the worst."""
    lines = [f"{'':12}{'float32':>9}{'log2 lr*':>9}" + "".join(f"{format:>18}" for format in FORMATS[1:]), f"{'':30}" + f"{'at lr*  largest':>18}" * 3]
    for param in RATES:
        for width in WIDTHS:
            exact = {lr: loss for lr, loss in losses[param, width, "float"].items() if loss is not None}
            best = min(exact, key=exact.get)
            cells = [gaps(losses, param, width, format) for format in FORMATS[1:]]
            lines.append(f"{param:6}{width:>6}{exact[best]:>9.3f}{math.log2(best):>9g}" + "".join(f"{g[best]:>+10.3f}{max(g.values()):>+8.3f}" for g in cells))
    return "\n".join(lines)


def draw(losses):
    """A panel per parametrization: the gap against the learning rate, a colour per format, a line style per width."""
    figure, axes = plt.subplots(1, len(RATES), figsize=(11, 3.8), sharey=True, layout="constrained")
    finite = [gap for param, width, format in losses if format != "float" for gap in gaps(losses, param, width, format).values() if gap < math.inf]
    top = max(finite) * 1.1
    for ax, param in zip(axes, RATES):
        for colour, format in zip(("tab:green", "tab:blue", "tab:red"), FORMATS[1:]):
            for style, width in zip((":", "-", "--"), WIDTHS):
                gap = gaps(losses, param, width, format)
                x = [math.log2(lr) for lr in gap]
                ax.plot(x, [min(g, top) for g in gap.values()], style, marker="o", markersize=4, color=colour, label=f"{format}, width {width}")
                gone = [math.log2(lr) for lr, g in gap.items() if g == math.inf]
                ax.plot(gone, [top] * len(gone), "x", markersize=10, color=colour)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_title(param, fontsize=10)
        ax.set_xlabel("log2 learning rate")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("loss − loss in float32, nats per byte")
    axes[-1].legend(fontsize=8)
    figure.suptitle("Operands of the matrix products in simulated low precision, no scale factors (× diverged)", fontsize=11)
    figure.savefig(transfer.FIGURES / "low_precision.png", dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        transfer.train("low_precision", GRIDS, flags.jobs)
    losses = mean_losses(transfer.read("low_precision"))
    print(report(losses))
    draw(losses)
