"""What the transfer experiments share: a grid of runs → a small CSV → a table and a figure made from the CSV alone."""
import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for pinned in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):   # on some machines these choose a slow BLAS kernel
    os.environ.pop(pinned, None)

from tinymup import data, plot, run, sweep  # noqa: E402

RESULTS, FIGURES = ROOT / "experiments/results", ROOT / "experiments/figures"
NUMBERS = {"width": int, "depth": int, "seed": int, "lr": float, "loss": float}


def arguments(description):
    """--jobs; --redraw makes table and figure from the committed CSV and trains nothing."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--jobs", type=int, default=2, help="runs side by side [2]")
    p.add_argument("--redraw", action="store_true", help="train nothing: table and figure from the CSV")
    return p.parse_args()


def commit():
    """The commit of the code that ran, with + where files were changed since."""
    git = ["git", "-C", ROOT, "describe", "--always", "--dirty=+"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"


def train(name, grids, jobs):
    """Trains all configs of grids, a list of (base config, axes), and writes results/NAME.csv.

    The CSV has a column for every field of the config that varies, then status, loss (held-out), train_loss and seconds.
    """
    configs = list(dict.fromkeys(c for base, axes in grids for c in sweep.grid(base, axes)))
    corpus = data.load(configs[0].data, configs[0].seq)
    results = sweep.Results(ROOT / "runs" / name)
    records = sweep.run_all(configs, corpus, results, jobs)
    varying = sorted({f for r in records for f in r["config"] if r["config"][f] != records[0]["config"][f]} | {"param", "width", "lr", "seed"})
    with open(RESULTS / f"{name}.csv", "w") as file:
        fixed = ", ".join(f"{f} {v}" for f, v in records[0]["config"].items() if f not in varying)
        file.write(f"# python experiments/{name}.py; commit {commit()}; corpus {corpus.digest}; numpy {run.versions()['numpy']}; {fixed}\n")
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*varying, "status", "loss", "train_loss", "seconds"])
        for r in sorted(records, key=lambda r: [str(r["config"][f]).zfill(12) for f in varying]):
            last = r["curve"][-1][1] if r.get("curve") else ""
            table.writerow([*(r["config"][f] for f in varying), r["status"], "" if r["loss"] is None else f"{r['loss']:.5f}",
                            last and f"{last:.5f}", f"{r.get('seconds', 0):.1f}"])


def read(name):
    """The rows of results/NAME.csv as records that `sweep.curves` takes."""
    records = []
    with open(RESULTS / f"{name}.csv") as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            config = {k: NUMBERS.get(k, str)(v) for k, v in row.items() if k not in ("status", "loss", "train_loss", "seconds")}
            records.append({"config": config, "status": row["status"], "loss": float(row["loss"]) if row["loss"] else None})
    return records


def show(name, title, records=None):
    """Prints the tables and drifts of results/NAME.csv and draws figures/NAME.png."""
    size, groups = sweep.curves(records or read(name))
    print(sweep.report(size, groups))
    plot.loss_against_lr(size, groups, FIGURES / f"{name}.png", title)
