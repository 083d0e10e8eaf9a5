"""Claim: u-μP trains in FP8 without scale factors nearly as well as in float32; SP and μP do not.

    python experiments/low_precision.py --jobs 2

The operands of the products with the matrices query, key, value and up are rounded, in forward
and backward pass. SP and μP lose more because their gradients lie below FP8's range, as
tensor_rms.py shows. BF16 costs none of the three anything.

Refuted by: at the best learning rate in float32, a gap of u-μP in FP8 above 0.02 nats or not below
those of SP and μP at its width, or any gap in BF16 above 0.02. The formats are simulated. One seed:
differences below some 0.01 nats mean nothing.
"""
import math

import transfer  # first: it sets the path
from tinymup.lab.config import Config
from tinymup.lab.plot import plt

WIDTHS, SEEDS, FORMATS = [64, 128], [0], ["float", "bf16", "fp16", "fp8"]
LRS = {"sp": [2.0**e for e in (-8, -7)], "mup": [2.0**e for e in (-7, -6)],
       "umup": [2.0**e for e in (-1, 0)]}                          # around each optimum
GRIDS = [(Config(param=param), {"width": WIDTHS, "lr": LRS[param], "matmul_format": FORMATS,
                                "seed": SEEDS}) for param in LRS]
ENOUGH = 0.02                                                      # nats: a gap that refutes
COLOURS = dict(zip(FORMATS[1:], ("tab:green", "tab:blue", "tab:red")))
STYLES = dict(zip(WIDTHS, (":", "-")))


def mean_losses(records):
    """{(param, width, format): {lr: mean loss over seeds, None if a run diverged}}"""
    losses = {}
    for r in records:
        c = r["config"]
        by_lr = losses.setdefault((c["param"], c["width"], c["matmul_format"]), {})
        by_lr.setdefault(c["lr"], []).append(r["loss"])
    return {key: {lr: None if None in each else sum(each) / len(each)
                  for lr, each in sorted(by_lr.items())} for key, by_lr in losses.items()}


def gaps(losses, param, width, format):
    """{lr: loss in the format less loss in float32}, inf if only the former diverged."""
    exact = losses[param, width, "float"]
    return {lr: math.inf if loss is None else loss - exact[lr]
            for lr, loss in losses[param, width, format].items() if exact[lr] is not None}


def best_lr(losses, param, width):
    """The learning rate with the lowest loss in float32."""
    exact = losses[param, width, "float"]
    return min((lr for lr, loss in exact.items() if loss is not None), key=exact.get)


def report(losses):
    """A row per parametrization and width: the best float32 loss, and the gaps at its lr."""
    lines = [f"{'':12}{'float32':>9}{'log2 lr*':>9}" + "".join(f"{f:>18}" for f in FORMATS[1:]),
             f"{'':30}" + f"{'at lr*  largest':>18}" * 3]
    for param in LRS:
        for width in WIDTHS:
            best = best_lr(losses, param, width)
            cells = [gaps(losses, param, width, format) for format in FORMATS[1:]]
            lines.append(
                f"{param:6}{width:>6}{losses[param, width, 'float'][best]:>9.3f}"
                f"{math.log2(best):>9g}"
                + "".join(f"{g[best]:>+10.3f}{max(g.values()):>+8.3f}" for g in cells))
    return "\n".join([*lines, *verdicts(losses)])


def verdicts(losses):
    """A sentence per width on what the gaps at the best learning rates say of the claim."""
    for width in WIDTHS:
        fp8, bf16 = ({param: gaps(losses, param, width, f)[best_lr(losses, param, width)]
                      for param in LRS} for f in ("fp8", "bf16"))
        rival = min(gap for param, gap in fp8.items() if param != "umup")
        against = [f"u-μP's gap in fp8, {fp8['umup']:.3f}, is above {ENOUGH}"
                   ] * (fp8["umup"] > ENOUGH)
        against += [f"u-μP's gap in fp8, {fp8['umup']:.3f}, is not below {rival:.3f}, the smaller "
                    "of SP's and μP's"] * (fp8["umup"] >= rival)
        against += [f"{param}'s gap in bf16, {gap:.3f}, is above {ENOUGH}"
                    for param, gap in bf16.items() if gap > ENOUGH]
        yield f"width {width}: " + ("; ".join(["refuted", *against]) if against else "not refuted")


def draw(losses):
    """A panel per parametrization: gap against lr, a colour per format, a line style per width."""
    figure, axes = plt.subplots(1, len(LRS), figsize=(11, 3.8), sharey=True, layout="constrained")
    finite = [gap for param, width, format in losses if format != "float"
              for gap in gaps(losses, param, width, format).values() if gap < math.inf]
    top = max(finite) * 1.1
    for ax, param in zip(axes, LRS):
        for format, colour in COLOURS.items():
            for width, style in STYLES.items():
                gap = gaps(losses, param, width, format)
                ax.plot([math.log2(lr) for lr in gap], [min(g, top) for g in gap.values()], style,
                        marker="o", markersize=4, color=colour, label=f"{format}, width {width}")
                gone = [math.log2(lr) for lr, g in gap.items() if g == math.inf]
                ax.plot(gone, [top] * len(gone), "x", markersize=10, color=colour)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_title(param, fontsize=10)
        ax.set_xlabel("log2 learning rate")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("loss − loss in float32, nats per byte")
    axes[-1].legend(fontsize=8)
    figure.suptitle("Operands of the matrix products in simulated low precision, no scale factors "
                    "(× diverged)", fontsize=11)
    figure.savefig(transfer.FIGURES / "low_precision.png", dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        transfer.train("low_precision", GRIDS, flags.jobs)
    losses = mean_losses(transfer.read("low_precision"))
    print(report(losses))
    draw(losses)
