"""What the experiments share: from a grid of runs to a small CSV, and from that file to a figure.

Import it before tinymup: it sets the path and removes two variables that slow BLAS down.
"""
import argparse
import csv
import ctypes
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
for pinned in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):   # they make OpenBLAS pick a slow kernel
    os.environ.pop(pinned, None)

import numpy as np  # noqa: E402
from tinymup.lab import data, optimum, plot, sweep  # noqa: E402
from tinymup.lab.config import CHOICES, FIELDS, unused  # noqa: E402
from tinymup.lab.results import Results, finished  # noqa: E402

RESULTS, FIGURES = ROOT / "experiments/results", ROOT / "experiments/figures"
ALWAYS = {"param", "width", "lr", "seed"}                  # columns even if they do not vary
OUTCOME = ["status", "loss", "train_loss", "seconds"]      # the last columns of a CSV of runs


def parser(description, jobs=True, device=True):
    """A parser with --redraw and, if the experiment has runs to put side by side, --jobs, --device.

    device: whether these runs go through `finished_runs`, and so can use a GPU.
    """
    p = argparse.ArgumentParser(description=description,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    if jobs:
        p.add_argument("--jobs", type=int, default=2, help="runs side by side [2]")
    if jobs and device:
        p.add_argument("--device", choices=CHOICES["device"], default="cpu",
                       help="where the runs compute [cpu]")
    p.add_argument("--redraw", action="store_true",
                   help="train nothing: make table and figure from the CSV")
    return p


def arguments(description, jobs=True, device=True):
    """The flags of an experiment that has no others than those of `parser`."""
    return parser(description, jobs, device).parse_args()


def commit():
    """The commit of the code, with + if files other than results and figures changed since."""
    git = ["git", "-C", str(ROOT)]
    code = [".", ":!experiments/results", ":!experiments/figures"]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True,
                              text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code]).returncode
        return name + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def kernel():
    """The kernel that OpenBLAS picked for this CPU. NumPy's wheels carry it beside the package."""
    for library in Path(np.__file__).parent.parent.glob("numpy.libs/*openblas*"):
        for symbol in ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename"):
            if hasattr(ctypes.CDLL(str(library)), symbol):
                function = getattr(ctypes.CDLL(str(library)), symbol)
                function.restype = ctypes.c_char_p
                return function().decode()
    return "unknown"


def commit_and_kernel(device="cpu"):
    """The commit of the code and, on a CPU, the BLAS kernel, as the first line of a CSV names them.

    Two kernels round differently; where training is hardly stable, losses differ by up to 0.07
    (replay.py).
    """
    return f"commit {commit()} on " + (f"BLAS kernel {kernel()}" if device == "cpu" else "a GPU")


def origin(folder, trains, device="cpu"):
    """The commits and BLAS kernels of all starts that trained runs of a folder, as text.

    trains: whether this start trains some, too. The folder's file `origin` keeps a line for each.
    """
    path = folder / "origin"
    kept = path.read_text().splitlines() if path.exists() else []
    if not kept and any(file.stat().st_size for file in folder.glob("*.*")):
        kept = ["some runs are of a commit and a BLAS kernel that were not recorded"]
    if trains:
        kept = list(dict.fromkeys([*kept, commit_and_kernel(device)]))
        path.write_text("".join(line + "\n" for line in kept))
    return "; ".join(kept)


def finished_runs(name, configs, flags, program=None):
    """(records of the configs, first line of their CSV). Runs kept in runs/NAME are not repeated.

    A run that was interrupted continues from its checkpoint there.
    flags: those of `parser`. A run that was finished on another device counts as kept.
    program: the experiment's name, if it is not NAME.

    Errors: exits if a run failed, since a table would show it as one that diverged.
    """
    corpus = data.load(configs[0].data, configs[0].seq)
    results = Results(ROOT / "runs" / name)
    kept = results.read()

    def placed(config):
        """The config on the device that has finished it, or else on the one that was chosen."""
        choices = [replace(config, device=device) for device in (flags.device, "cpu", "gpu")]
        return next((c for c in choices if finished(kept.get(c.key(corpus.digest)))), choices[0])
    configs = list(map(placed, configs))
    trains = not all(finished(kept.get(c.key(corpus.digest))) for c in configs)
    about = [f"python experiments/{program or name}.py",
             origin(results.path.parent, trains, flags.device), f"corpus {corpus.digest}"]
    records = sweep.run_all(configs, corpus, results, flags.jobs, resume=True)
    failed = [r for r in records if not finished(r)]
    if failed:
        sys.exit(f"{len(failed)} of {len(records)} runs failed, the first with: "
                 f"{failed[0].get('reason')}; the same command tries them again")
    for device in sorted({config.device for config in configs}):
        library = {"cpu": "numpy", "gpu": "on a GPU: cupy"}[device]
        versions = {r["versions"]["arrays"] for r in records if r["config"]["device"] == device}
        about.append(f"{library} {', '.join(sorted(versions))}")
    return records, "; ".join(about)


def train(name, grids, flags, program=None):
    """Trains all configs of grids, a list of (base config, axes), and writes results/NAME.csv.

    The CSV has a column for each field that varies and for those in `ALWAYS`, then `OUTCOME`: the
    status, the held-out loss, the last point of the training curve, and the seconds.
    """
    configs = list(dict.fromkeys(c for base, axes in grids for c in sweep.grid(base, axes)))
    records, about = finished_runs(name, configs, flags, program)
    first, *others = found = [record["config"] for record in records]
    varying = sorted(f for f in FIELDS
                     if f in ALWAYS or any(other[f] != first[f] for other in others))
    used = [f for f in FIELDS if f not in varying and any(f not in unused(c) for c in configs)]
    fixed = ", ".join(f"{f} {first[f]}" for f in used)
    rows = [([config[f] for f in varying], record) for config, record in zip(found, records)]
    rows.sort(key=lambda row: [(value is not None, value) for value in row[0]])
    write(name, f"{about}; {fixed}", [*varying, *OUTCOME],
          [[*values, record["status"], digits(record["loss"]), digits(record["curve"][-1][1]),
            f"{record['seconds']:.1f}"] for values, record in rows])


def refuse(text):
    """Ends the program with one line and exit status 2."""
    print(text, file=sys.stderr)
    sys.exit(2)


def digits(loss):
    """A loss with five decimals; empty for None."""
    return "" if loss is None else f"{loss:.5f}"


def write(name, about, columns, rows):
    """Writes results/NAME.csv: a comment on where the numbers come from, then the table."""
    with open(RESULTS / f"{name}.csv", "w") as file:
        file.write(f"# {about}\n")
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def rows_of(name):
    """The rows of results/NAME.csv as dicts of strings. Errors: exits if there is no such file."""
    if not (RESULTS / f"{name}.csv").exists():
        refuse(f"results/{name}.csv is missing: run its experiment without --redraw first")
    with open(RESULTS / f"{name}.csv") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def read(name):
    """The rows of results/NAME.csv as records that `optimum.curves` takes, without the device."""
    return [{"config": {f: typed(f, text) for f, text in row.items()
                        if f not in [*OUTCOME, "device"]},
             "status": row["status"], "loss": float(row["loss"]) if row["loss"] else None,
             "seconds": float(row["seconds"])} for row in rows_of(name)]


def typed(name, text):
    """A number from its text in a CSV; None from an empty cell. Of other fields, the text."""
    kind = FIELDS[name].metadata["kind"]
    return None if text == "" else kind(text) if kind in (int, float) else text


def curve(records):
    """{width: [Point, …]} of records that differ in width, lr and seed. Drops other fields."""
    kept = [r | {"config": {f: r["config"][f] for f in ALWAYS}} for r in records]
    return next(iter(optimum.curves(kept)[1].values()))


def best_point(points):
    """The point of a curve with the lowest loss."""
    return min((p for p in points if p.loss is not None), key=lambda p: p.loss)


def verdict(against):
    """What the claim comes to, given a list of what speaks against it."""
    return "; ".join(["refuted", *against]) if against else "not refuted"


def show(name, title, records):
    """Prints the tables and drifts of records and draws figures/NAME.png."""
    size, groups = optimum.curves(records)
    print(optimum.report(size, groups))
    plot.loss_against_lr(size, groups, FIGURES / f"{name}.png", title)
