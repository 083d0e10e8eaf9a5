"""Curves of loss against learning rate, their optima, and how far these move with the size."""
import json
import math
import statistics
from typing import NamedTuple

from .config import spelled

SIZES = "width", "depth", "head_dim", "batch", "seq", "steps"   # the size: the first that varies
LABELS = "param", "optimizer", "model"   # a label has their values alone; of others, "depth 4"
STAYS, MOVES = 0.5, 1.0   # octaves up to which a best lr "stays", from which it "moves"


class Point(NamedTuple):
    """The runs of one size and learning rate. If one diverged or failed, there is no mean loss."""

    lr: float
    loss: float        # held-out, nats per byte: the mean over seeds, or None
    low: float         # of the seeds, or None
    high: float
    seeds: int
    by_seed: dict      # seed → loss, or None


class Optimum(NamedTuple):
    """Where a curve of loss against log2 lr is lowest."""

    log2_lr: float     # the vertex of the parabola through the best point and its neighbours
    loss: float        # of the best point
    exact: bool        # False if a neighbour has no loss: then log2_lr is the best point's


def curves(records):
    """(the field that is the size, {label of a group: {size: [Point, …]}}), in the order of lr.

    The runs of a group differ in size, lr and seed only.
    """
    configs = [record["config"] for record in records]
    size = next((f for f in SIZES if len({c.get(f) for c in configs}) > 1), "width")
    named = group_fields(configs, size)
    table = {}
    for record in records:
        c = record["config"]
        label = ", ".join(spelled(c[f]) if f in LABELS else f"{f} {spelled(c[f])}"
                          for f in named or ["param"])
        by_lr = table.setdefault(label, {}).setdefault(c[size], {})
        by_lr.setdefault(c["lr"], {})[c.get("seed", 0)] = record["loss"]
    return size, {label: {s: [point(*item) for item in sorted(by_lr.items())]
                          for s, by_lr in sorted(by_size.items())}
                  for label, by_size in table.items()}


def group_fields(configs, size):
    """The fields that tell groups of runs apart: those that vary, besides size, lr and seed.

    A field is left out if the size and the fields before it fix its value, as for some defaults.
    """
    def distinct(names):
        return len({json.dumps([c[f] for f in names]) for c in configs})   # betas are a list
    named, varying = [], [f for f, value in configs[0].items() if f not in (size, "lr", "seed")
                          and [c[f] for c in configs].count(value) < len(configs)]
    for field in sorted(varying, key=lambda f: f not in LABELS):
        if distinct([size, *named, field]) > distinct([size, *named]):
            named.append(field)
    return named


def point(lr, losses):
    """The `Point` of the losses {seed: loss, or None}."""
    known = losses.values()
    if None in known:
        return Point(lr, None, None, None, len(losses), losses)
    return Point(lr, sum(known) / len(losses), min(known), max(known), len(losses), losses)


def optimum(points):
    """The `Optimum` of a curve; None if no point has a loss."""
    valid = [i for i, p in enumerate(points) if p.loss is not None]
    if not valid:
        return None
    best = min(valid, key=lambda i: points[i].loss)
    x, y = math.log2(points[best].lr), points[best].loss
    if best - 1 not in valid or best + 1 not in valid:
        return Optimum(x, y, False)
    (x0, y0), (x2, y2) = ((math.log2(points[i].lr), points[i].loss) for i in (best - 1, best + 1))
    left, right = (y - y0) / (x - x0), (y2 - y) / (x2 - x)    # slopes of chords, left ≤ 0 ≤ right
    vertex = (x0 + x) / 2 - left * (x2 - x0) / 2 / (right - left) if right > left else x
    return Optimum(vertex, y, True)


class Movement(NamedTuple):
    """How far the best learning rate moves from the smallest size to the largest."""

    octaves: float      # by the mean loss over the shared seeds; None if a size has no optimum
    exact: bool         # whether both optima are exact
    per_doubling: float
    by_seed: list       # octaves of each shared seed that has an optimum at both sizes
    shared: list        # the seeds that all points have; if there are none, the mean is over all
    differ: bool        # whether some points have other seeds too


def movement(by_size):
    """The `Movement` of {size: [Point, …]}."""
    ends = list(by_size)[0], list(by_size)[-1]
    seeds = [set(p.by_seed) for points in by_size.values() for p in points]
    shared = set.intersection(*seeds)
    first, last = (optimum(of_seeds(by_size[end], shared or set.union(*seeds))) for end in ends)
    moves = [found[1].log2_lr - found[0].log2_lr for seed in sorted(shared)
             if None not in (found := [optimum(of_seeds(by_size[end], {seed})) for end in ends])]
    differ = any(own != shared for own in seeds)
    if None in (first, last):
        return Movement(None, False, None, moves, sorted(shared), differ)
    octaves, doublings = last.log2_lr - first.log2_lr, math.log2(ends[1] / ends[0])
    return Movement(octaves, first.exact and last.exact, doublings and octaves / doublings, moves,
                    sorted(shared), differ)


def of_seeds(points, seeds):
    """The points with the losses of these seeds only."""
    return [point(p.lr, {seed: p.by_seed[seed] for seed in sorted(seeds) if seed in p.by_seed})
            for p in points]


def in_words(moved):
    """A movement as "-0.24 ± 0.02 octaves", where ± is the standard deviation over seeds."""
    spread = f" ± {statistics.stdev(moved.by_seed):.2f}" if len(moved.by_seed) > 1 else ""
    return f"{moved.octaves:+.2f}{spread} octaves"


def report(size, groups):
    """For each group a table of losses, the best marked *, and how far the best lr moves."""
    text = []
    for label, by_size in groups.items():
        lrs = sorted({p.lr for points in by_size.values() for p in points})
        counts = {p.seeds for points in by_size.values() for p in points}
        seeds = " to ".join(map(str, sorted({min(counts), max(counts)})))
        lines = [[size, *(f"2^{math.log2(lr):.3g}" for lr in lrs), "log2 lr*"],
                 *(table_line(s, points, lrs) for s, points in by_size.items())]
        widths = [max(least, *(len(line[i]) + 1 for line in lines))
                  for i, least in enumerate([8, *[9] * len(lrs), 11])]
        text += ["", f"{label}: held-out loss, nats per byte"
                 + (f", mean of {seeds} seeds" if max(counts) > 1 else ""),
                 *("".join(map(str.rjust, line, widths)) for line in lines)]
        if len(by_size) > 1 and len(lrs) > 1:
            text.append(movement_line(label, size, by_size))
    if any("?" in row[-1:] for row in text):
        text.append("? the best lr lies at the edge of the grid or beside divergence: "
                    "extend --lr or --lr-factor to place it")
    return "\n".join(text[1:])


def table_line(s, points, lrs):
    """The cells of one size: the size, the losses, the best log2 lr."""
    at, best = {p.lr: p for p in points}, optimum(points)
    cells = ["" if lr not in at else "no loss" if at[lr].loss is None else
             f"{at[lr].loss:.3f}" + ("*" if best and at[lr].loss == best.loss else " ")
             for lr in lrs]
    found = f"{best.log2_lr:.2f}{' ' if best.exact else '?'}" if best else "none"
    return [str(s), *cells, found]


def movement_line(label, size, by_size):
    """One sentence on how far the best lr moves."""
    moved = movement(by_size)
    first, *_, last = by_size
    if moved.octaves is None:
        return f"{label}: at {size} {first} or {last} no lr has a loss for every seed"
    octaves, count = abs(moved.octaves), len(moved.shared)
    verdict = "stays" if octaves <= STAYS else "moves" if octaves >= MOVES else "drifts"
    notes = [f"{moved.per_doubling:+.2f} per doubling"]
    if moved.differ:
        seeds = f"seed{'s' * (count > 1)} {', '.join(map(str, moved.shared))}"
        notes.append(f"of {seeds}, which all have" if count else "no seed has run everywhere")
    elif count > 1:
        notes.append(f"{count} seeds")
    return (f"{label}: the best lr moves by {in_words(moved)} from {size} {first} to {last}: "
            f"it {verdict} ({'; '.join(notes)})" + ("" if moved.exact else " (?)"))
