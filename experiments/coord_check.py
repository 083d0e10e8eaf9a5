"""Claim: under μP activations and their changes, and changes of weights, scale as μP says.

    python experiments/coord_check.py

Activations and their changes must not depend on the width, but logits and their changes may shrink
by up to 1/√width. The spectral norm of a weight's change must follow √(fan_out/fan_in). All this is
meant to within the tolerance in tinymup/lab/coord_check.py, which gives the reasons.
The rival is SP, under which many of them grow. Refuted by: a verdict other than FAIL for SP and
PASS for μP.

Small networks take the first 8 steps of AdamW, on one batch, from three seeds. Changes are those
since initialisation.
"""
from dataclasses import replace

from transfer import (  # noqa: I001 (first: it sets the path)
    FIGURES, arguments, commit_and_kernel, rows_of, write)

from tinymup.lab import coord_check, data, plot
from tinymup.lab.config import Config, build, complete
from tinymup.lab.coord_check import Measurement
from tinymup.lab.plot import BLACK, BLUE, ORANGE, PURPLE, SKY

EXPECTED = {"sp": "FAIL", "mup": "PASS"}
WIDTHS, SEEDS, STEPS = [64, 128, 256, 512], [0, 1, 2], 8
CONFIG = Config(batch=8, seq=32)
COLUMNS = ["param", "step", "quantity", "name", "width", "mean_abs", "rms", "spectral"]


def measure(widths, seeds, steps):
    """Writes results/coord_check.csv: the means over seeds of all that the check measures."""
    corpus = data.load(CONFIG.data, CONFIG.seq)
    about = (f"python experiments/coord_check.py; {commit_and_kernel()}; corpus {corpus.digest}; "
             f"mean of seeds {seeds}; adamw, default lr, warm-up over {complete(CONFIG).warmup} "
             "steps; Δx and ΔW since initialisation")
    rows = []
    for param in EXPECTED:
        config = replace(CONFIG, param=param)
        means = {}
        for m in coord_check.measure(config, corpus, widths, seeds, steps):
            by_seed = means.setdefault((m.step, m.quantity, m.name, m.width), [])
            by_seed.append((m.mean_abs, m.rms, m.spectral))
        for key, values in means.items():
            sizes = ["" if None in column else f"{sum(column) / len(column):.5g}"
                     for column in zip(*values)]
            rows.append([param, *key, *sizes])
    write("coord_check", about, COLUMNS, rows)


def measurements(rows):
    """{param: [`Measurement`, …]} of a CSV. A mean over seeds has seed 0."""
    found = {}
    for row in rows:
        sizes = [float(row[size]) if row[size] else None for size in COLUMNS[-3:]]
        found.setdefault(row["param"], []).append(Measurement(
            int(row["width"]), 0, int(row["step"]), row["quantity"], row["name"], *sizes))
    return found


def ends(param, widths):
    """The narrowest and the widest network."""
    return [build(complete(replace(CONFIG, param=param, width=w)))
            for w in (min(widths), max(widths))]


def slopes(param, found):
    """The `Slope`s of one parametrization."""
    networks = ends(param, [m.width for m in found])
    return coord_check.slopes(found, coord_check.expected_slopes(*networks))


def report(found):
    """The table of slopes of each parametrization, and whether both verdicts are as claimed."""
    text, verdicts = [], {}
    for param, measured in found.items():
        by_name = slopes(param, measured)
        verdicts[param] = "PASS" if all(slope.passes for slope in by_name) else "FAIL"
        text += [param, coord_check.report(by_name), ""]
    said = ", ".join(f"{param} {verdict}" for param, verdict in verdicts.items())
    return "\n".join([*text, f"{said}: " + (
        "as claimed" if verdicts == EXPECTED else "the claim is refuted")])


def role(name):
    """(what a line shows, its look), of an activation or a matrix."""
    if name.endswith("attention_logits"):
        return "attention logits", {"color": SKY, "linestyle": "-."}
    found = {"embedding": ("embedding", {"color": ORANGE, "linestyle": "--"}),
             "final_norm": ("final norm", {"color": PURPLE, "linestyle": (0, (3, 1, 1, 1, 1, 1))}),
             "logits": ("logits, readout", {"color": BLACK, "linestyle": "--"}),
             "output": ("logits, readout", {"color": BLACK, "linestyle": "--"})}
    return found.get(name, ("hidden", {"color": BLUE, "linestyle": "-"}))


def draw(found):
    """figures/coord_check.png: Δx, and ΔW over theory's width^s, after the first and last step."""
    steps, widths = [1, STEPS], sorted({m.width for m in next(iter(found.values()))})
    columns = [(quantity, step) for quantity in ("Δx", "ΔW") for step in steps]
    figure, axes = plot.plt.subplots(len(found), len(columns), sharex=True, sharey=True,
                                     figsize=(9.2, 5))
    for row, (param, measured) in zip(axes, found.items()):
        expected = coord_check.expected_slopes(*ends(param, widths))
        for ax, (quantity, step) in zip(row, columns):
            draw_slopes(ax, [m for m in measured if (m.quantity, m.step) == (quantity, step)],
                        expected)
            after = f"after {step} step" + "s" * (step > 1)
            ax.set_title(f"{plot.named(param)}: {quantity} {after}")
        row[0].set_ylabel(f"size / size at width {widths[0]}")
    for ax in axes[-1]:
        ax.set_xlabel("width")
    looks = dict(role(m.name) for m in next(iter(found.values())))
    plot.legend(figure, looks | {"slopes 0, ½, 1": {"color": "grey", "linestyle": ":"}})
    plot.save(figure, FIGURES / "coord_check.png", f"Mean of {len(SEEDS)} seeds. Δx: RMS; ΔW: "
              "spectral norm over √(fan_out/fan_in). μP predicts slope 0 (logits: −½ to 0)")


def draw_slopes(ax, measured, expected):
    """A line per activation or matrix, relative to the narrowest network, and three slopes."""
    by_name = {}
    for m in measured:
        by_name.setdefault(m.name, {})[m.width] = m.spectral if m.rms is None else m.rms
    for name, sizes in by_name.items():
        widths, first = list(sizes), min(sizes)
        theory = sum(expected["ΔW", name]) / 2 if measured[0].rms is None else 0
        ax.plot(widths, [sizes[w] / sizes[first] / (w / first)**theory for w in widths],
                linewidth=1, **role(name)[1])
    for slope, words in (0, "0"), (0.5, "½"), (1, "1"):
        ends = [(w / first)**slope for w in (first, max(widths))]
        ax.plot([first, max(widths)], ends, ":", color="grey", linewidth=1.5, zorder=1)
        ax.annotate(words, (max(widths), ends[1]), (2, 0), textcoords="offset points",
                    color="0.3", va="center")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(widths, list(map(str, widths)))
    ax.set_xlim(first * 0.9, max(widths) * 1.4)


if __name__ == "__main__":
    if not arguments(__doc__, jobs=False).redraw:
        measure(WIDTHS, SEEDS, STEPS)
    found = measurements(rows_of("coord_check"))
    print(report(found))
    draw(found)
