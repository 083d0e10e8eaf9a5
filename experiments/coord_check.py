"""Claim: under μP no activation, no change of one and no update of a weight grows or shrinks with width; under SP nearly all grow.

Refuted by: a verdict other than FAIL for SP and PASS for μP. (Small networks, 8 steps of AdamW on one batch, 3 seeds.)
"""
import csv
from dataclasses import replace

from transfer import FIGURES, RESULTS, arguments, commit  # noqa: I001 (first: it sets the path)

from tinymup import coord_check, data, network, plot

PARAMS, WIDTHS, SEEDS,  STEPS = ["sp", "mup"], [64, 128, 256, 512], [0, 1, 2], 8
CONFIG = network.Config(batch=8, seq=32)
COLUMNS = ["param", "step", "quantity", "name", "width", "mean_abs", "rms", "spectral"]


def measure():
    """Writes results/coord_check.csv, means over seeds, and prints the slopes and the verdict of each parametrization."""
    corpus = data.load(CONFIG.data, CONFIG.seq)
    with open(RESULTS / "coord_check.csv", "w") as file:
        file.write(f"# python experiments/coord_check.py; commit {commit()}; corpus {corpus.digest}; mean of seeds {SEEDS}; adamw, default lr\n")
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for param in PARAMS:
            measurements, slopes, _ = coord_check.check(replace(CONFIG, param=param), corpus, WIDTHS, SEEDS, STEPS)
            print(f"\n{param}\n{coord_check.report(slopes)}")
            means = {}
            for m in measurements:
                means.setdefault((m.step, m.quantity, m.name, m.width), []).append((m.mean_abs, m.rms, m.spectral))
            for key, values in means.items():
                sizes = ["" if None in column else f"{sum(column) / len(column):.5g}" for column in zip(*values)]
                table.writerow([param, *key, *sizes])


def draw():
    """figures/coord_check.png from the CSV alone: the last step."""
    with open(RESULTS / "coord_check.csv") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    panels = {}
    for row in rows:
        if int(row["step"]) == STEPS and row["quantity"] in ("Δx", "ΔW"):
            column = {"Δx": f"RMS of Δx after {STEPS} steps", "ΔW": "spectral norm of ΔW"}[row["quantity"]]
            by_name = panels.setdefault(row["param"], {}).setdefault(column, {})
            by_name.setdefault(row["name"], {})[int(row["width"])] = float(row["rms"] or row["spectral"])
    plot.sizes_against_width(panels, FIGURES / "coord_check.png")


if __name__ == "__main__":
    if not arguments(__doc__).redraw:
        measure()
    draw()
