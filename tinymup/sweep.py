"""Many runs: the grid, workers side by side, a results file that survives anything, and the optimum's drift with size."""
import itertools
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, replace
from typing import NamedTuple

from tqdm import tqdm

from .network import build, complete

SIZES = ("width", "depth", "head_dim", "batch", "seq", "steps")   # along which an optimum may drift, first one that varies
LABELS = ("param", "optimizer", "model")                          # their values speak for themselves
STAYS, MOVES = 0.5, 1.0                                           # octaves of drift: at most this much, at least that much
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def grid(base, axes):
    """Every combination of axes (field → list of values) put into the config base, checked; the most work first."""
    configs = [complete(replace(base, **dict(zip(axes, values)))) for values in itertools.product(*axes.values())]
    work = {c: c.steps * c.batch * c.seq * sum(math.prod(row.shape) for row in build(c).rows) for c in configs}
    return sorted(configs, key=work.get, reverse=True)            # long runs last would leave workers idle at the end


# ── the results file ─────────────────────────────────────────────────────────────────────────────────────────────────

class Results:
    """A folder's results.jsonl: one line per run, only ever appended to, by the one process that holds its lock.

    Errors: ValueError where the folder cannot be written or another process holds the lock.
    """

    def __init__(self, folder):
        self.path = folder / "results.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = open(self.path, "ab+", buffering=0)         # what failed to be written is not tried again at exit
        except OSError as error:
            raise ValueError(f"--out {folder}: {error.strerror}; choose a folder that can be written") from None
        try:
            import fcntl
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system, however this process ends
        except ImportError:
            pass                                                   # Windows: nothing keeps a second sweep out of the folder
        except OSError:
            raise ValueError(f"{self.path} is being written by another sweep: wait for it, or choose another --out") from None

    def read(self):
        """key → last record. A line cut short by a crash is no record, and its run is not finished."""
        records = {}
        for line in self.path.read_bytes().splitlines():
            try:
                record = json.loads(line)
                records[record["key"]] = record
            except (ValueError, KeyError, TypeError):
                continue
        return records

    def last_byte(self):
        """What the file ends with; anything but a line's end is a line cut short."""
        self.file.seek(-1, os.SEEK_END)
        return self.file.read(1)

    def append(self, record):
        """Adds a line and waits until it is on the disk."""
        broken = bool(self.file.seek(0, os.SEEK_END)) and self.last_byte() != b"\n"
        try:
            line = b"\n" * broken + json.dumps(record).encode() + b"\n"
            while line:
                line = line[self.file.write(line):]
            os.fsync(self.file.fileno())
        except OSError as error:
            raise ValueError(f"{self.path}: {error.strerror}; the runs written so far are kept: make room and run the same command again") from None


def finished(record):
    """Whether a record stands for good; a failed run is tried again by the next sweep."""
    return record is not None and record["status"] in ("done", "diverged")


# ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

class Workers:
    """Starts worker processes and, when the sweep ends early, ends them."""

    def __init__(self, jobs):
        threads = {name: "1" for name in THREADS} if jobs > 1 else {}   # with several BLAS threads each they wait for each other
        self.environment = os.environ | threads | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.running = set()

    def train(self, config, key, checkpoint, resume):
        """The record of one run in a process of its own: `failed`, with a reason, where that process does not end well."""
        process = subprocess.Popen([sys.executable, "-m", "tinymup.worker"], env=self.environment, text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.running.add(process)
        job = json.dumps({"config": asdict(config), "key": key, "checkpoint": checkpoint, "resume": resume})
        try:
            with suppress(BrokenPipeError):                       # it died already; the exit status says how
                process.stdin.write(job + "\n")
                process.stdin.flush()
            stdout, stderr = process.stdout.read(), process.stderr.read()   # short: a record, or a traceback
            status = process.wait()
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
            self.running.discard(process)
        if status == 0:
            return json.loads(stdout)
        reason = f"killed by signal {-status}" if status < 0 else (stderr.strip().splitlines() or [f"exit status {status}"])[-1]
        return {"key": key, "status": "failed", "loss": None, "config": json.loads(job)["config"], "reason": reason}

    def kill(self):
        """Ends all workers at once."""
        for process in list(self.running):
            process.kill()


def run_all(configs, corpus, results, jobs=1, resume=False, progress=True):
    """Trains what results lacks and returns the records of configs, in their order. Only this thread writes the file."""
    keys = {config: config.key(corpus.digest) for config in configs}
    records = results.read()
    todo = [config for config in configs if not finished(records.get(keys[config]))]
    if progress and len(todo) < len(configs):
        print(f"{len(configs) - len(todo)} of {len(configs)} runs are in {results.path} already", file=sys.stderr)
    workers = Workers(jobs)
    bar = tqdm(total=len(todo), unit="run", disable=not (progress and sys.stderr.isatty()))
    with bar, ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(workers.train, config, keys[config], str(results.path.parent / f"{keys[config]}.npz"), resume): config
                   for config in todo}
        try:
            for future in as_completed(futures):
                record, config = future.result(), futures[future]
                results.append(record)
                records[record["key"]] = record
                bar.update()
                if progress:
                    bar.write(line(config, record), file=sys.stderr)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            workers.kill()
            raise
    return [records[keys[config]] for config in configs]


def line(config, record):
    """A finished run in one line."""
    outcome = f"loss {record['loss']:.4f}" if record["status"] == "done" else record["status"] + " " + record.get("reason", "")
    return f"{config.param:10} {config.optimizer:6} width {config.width:5d} lr 2^{math.log2(config.lr):<6.3g} seed {config.seed}   {outcome}"


# ── what the records say ─────────────────────────────────────────────────────────────────────────────────────────────

class Point(NamedTuple):
    """The runs of one learning rate and size, over seeds. loss is None where a run diverged or failed."""

    lr: float
    loss: float        # mean over seeds, nats per byte, held-out
    low: float
    high: float
    seeds: int


class Optimum(NamedTuple):
    """Where a curve of loss against log2 lr is lowest."""

    log2_lr: float     # vertex of the parabola through the three best neighbours, or the best point of the grid
    loss: float        # of the best point of the grid
    exact: bool        # False: the best point lies at the grid's edge or beside divergence, and no parabola can be drawn


def curves(records):
    """(size field, {group label: {size: [Point, …]}}), points in the order of lr; a group is all that is neither size, lr nor seed."""
    configs = [record["config"] for record in records]
    varying = [f for f in configs[0] if any(c[f] != configs[0][f] for c in configs)]
    size = next((f for f in SIZES if f in varying), "width")
    named = group_fields(configs, [f for f in varying if f not in (size, "lr", "seed")]) or ["param"]
    table = {}
    for record in records:
        c = record["config"]
        label = ", ".join(str(c[f]) if f in LABELS else f"{f} {c[f]}" for f in named)
        table.setdefault(label, {}).setdefault(c[size], {}).setdefault(c["lr"], []).append(record["loss"])
    points = {label: {s: [point(lr, by_lr[lr]) for lr in sorted(by_lr)] for s, by_lr in sorted(by_size.items())}
              for label, by_size in table.items()}
    return size, points


def group_fields(configs, varying):
    """The fewest of the varying fields that tell the groups apart: what follows from a field before it, as a default does, is left out."""
    named = []
    distinct = lambda names: len({json.dumps([c[f] for f in names]) for c in configs})   # betas are a list
    for field in sorted(varying, key=lambda f: f not in LABELS):
        if distinct([*named, field]) > max(1, distinct(named)):
            named.append(field)
    return named


def point(lr, losses):
    """The `Point` of the losses of several seeds, None among them for a run without one."""
    if None in losses:
        return Point(lr, None, None, None, len(losses))
    return Point(lr, sum(losses) / len(losses), min(losses), max(losses), len(losses))


def optimum(points):
    """The `Optimum` of a curve, None where every point diverged."""
    valid = [i for i, p in enumerate(points) if p.loss is not None]
    if not valid:
        return None
    best = min(valid, key=lambda i: points[i].loss)
    x, y = math.log2(points[best].lr), points[best].loss
    if best - 1 not in valid or best + 1 not in valid:
        return Optimum(x, y, False)
    (x0, y0), (x2, y2) = ((math.log2(points[i].lr), points[i].loss) for i in (best - 1, best + 1))
    left, right = (y - y0) / (x - x0), (y2 - y) / (x2 - x)        # slopes of the two chords, left ≤ 0 ≤ right
    vertex = (x0 + x) / 2 - left * (x2 - x0) / 2 / (right - left) if right > left else x
    return Optimum(vertex, y, True)


def drift(by_size):
    """Octaves from the smallest size's optimal lr to the largest's, and whether both are exact; None where one is missing."""
    optima = [optimum(points) for points in by_size.values()]
    if None in (optima[0], optima[-1]):
        return None, False
    return optima[-1].log2_lr - optima[0].log2_lr, optima[0].exact and optima[-1].exact


def report(size, groups):
    """Per group a table of loss against size and lr, the best marked with *, and the drift of the optimum."""
    text = []
    for label, by_size in groups.items():
        lrs = sorted({p.lr for points in by_size.values() for p in points})
        seeds = max(p.seeds for points in by_size.values() for p in points)
        text += ["", f"{label}: held-out loss, nats per byte" + (f", mean of {seeds} seeds" if seeds > 1 else ""),
                 f"{size:>8}" + "".join(f"{'2^%.3g' % math.log2(lr):>9}" for lr in lrs) + f"{'log2 lr*':>11}"]
        for s, points in by_size.items():
            at, best = {p.lr: p for p in points}, optimum(points)
            cells = ["" if lr not in at else "no loss" if at[lr].loss is None else
                     f"{at[lr].loss:.3f}" + ("*" if best and at[lr].loss == best.loss else " ") for lr in lrs]
            text.append(f"{s:>8}" + "".join(f"{cell:>9}" for cell in cells)
                        + (f"{best.log2_lr:>10.2f}{' ' if best.exact else '?'}" if best else f"{'none':>10}"))
        if len(by_size) > 1:
            text.append(drift_line(label, size, by_size))
    if any("?" in row[-1:] for row in text):
        text.append("? the best lr lies at the edge of the grid or beside divergence: extend --lr to place it")
    return "\n".join(text[1:])


def drift_line(label, size, by_size):
    """One sentence on how far the optimum moved."""
    octaves, exact = drift(by_size)
    first, *_, last = by_size
    if octaves is None:
        return f"{label}: at {size} {first} or {last} every run diverged or failed"
    verdict = "stays" if abs(octaves) <= STAYS else "moves" if abs(octaves) >= MOVES else "drifts"
    return f"{label}: the best lr moves by {octaves:+.2f} octaves from {size} {first} to {last}: it {verdict}" + ("" if exact else " (?)")
