"""Claim: under μP activations and their changes, and changes of weights, scale as μP says.

    python experiments/coord_check.py

Activations and their changes must not depend on the width, and the spectral norm of a weight's
change must follow √(fan_out/fan_in), both to within the tolerance in tinymup/lab/coord_check.py.
The rival is SP, under which many of them grow. Refuted by: a verdict other than FAIL for SP and
PASS for μP.

Small networks take the first 8 steps of AdamW, on one batch, from three seeds. Changes are those
since initialisation.
"""
from dataclasses import replace

from transfer import (  # noqa: I001 (first: it sets the path)
    FIGURES, arguments, commit, rows_of, write)

from tinymup.lab import coord_check, data, plot
from tinymup.lab.config import Config, build, complete
from tinymup.lab.coord_check import Measurement

EXPECTED = {"sp": "FAIL", "mup": "PASS"}
WIDTHS, SEEDS, STEPS = [64, 128, 256, 512], [0, 1, 2], 8
CONFIG = Config(batch=8, seq=32)
COLUMNS = ["param", "step", "quantity", "name", "width", "mean_abs", "rms", "spectral"]


def measure(widths, seeds, steps):
    """Writes results/coord_check.csv: the means over seeds of all that the check measures."""
    corpus = data.load(CONFIG.data, CONFIG.seq)
    about = (f"python experiments/coord_check.py; commit {commit()}; corpus {corpus.digest}; "
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
    """{param: [`Measurement`, …]} of a CSV. The seed is that of the mean: 0 for all."""
    found = {}
    for row in rows:
        sizes = [float(row[size]) if row[size] else None for size in COLUMNS[-3:]]
        found.setdefault(row["param"], []).append(Measurement(
            int(row["width"]), 0, int(row["step"]), row["quantity"], row["name"], *sizes))
    return found


def slopes(param, found):
    """The `Slope`s of one parametrization."""
    widths = [m.width for m in found]
    narrow, wide = (build(complete(replace(CONFIG, param=param, width=w)))
                    for w in (min(widths), max(widths)))
    return coord_check.slopes(found, coord_check.expected_slopes(narrow, wide))


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


def draw(found):
    """figures/coord_check.png: Δx and ΔW at the last step against width."""
    panels = {}
    for param, measured in found.items():
        last = max(m.step for m in measured)
        for m in measured:
            if m.step == last and m.quantity in ("Δx", "ΔW"):
                column = {"Δx": f"RMS of Δx after {last} steps",
                          "ΔW": f"spectral norm of ΔW after {last} steps"}[m.quantity]
                by_name = panels.setdefault(param, {}).setdefault(column, {})
                by_name.setdefault(m.name, {})[m.width] = m.spectral if m.rms is None else m.rms
    plot.sizes_against_width(panels, FIGURES / "coord_check.png")


if __name__ == "__main__":
    if not arguments(__doc__, jobs=False).redraw:
        measure(WIDTHS, SEEDS, STEPS)
    found = measurements(rows_of("coord_check"))
    print(report(found))
    draw(found)
