"""What a sweep will need, estimated before it starts: parameters, operations, memory, minutes."""
import functools
import math
import os
import time
from dataclasses import replace

from numpy import dtype, errstate

from .. import mlp
from ..backend import to_host
from . import data, run
from .config import MODELS, MUONS, picked

STEP = 4e9         # a step of so many operations takes a fraction of a second on any machine
START = 0.5        # seconds that a process takes to start and import
PROCESS = 60e6     # bytes of Python, NumPy and the text


@functools.lru_cache(maxsize=None)
def counts(model, architecture):
    """(parameters, those in products, operations of a Newton–Schulz step), from depth 1 and 2."""
    def of(depth):
        specs = list(model.specs(architecture._replace(depth=depth)))
        dense = [s for s in specs if len(s.shape) == 2 and (not s.lookups or s.role == "tied")]
        hidden = [sorted(s.shape) for s in specs if s.role == "hidden"]
        return [sum(math.prod(s.shape) for s in specs), sum(math.prod(s.shape) for s in dense),
                sum(4 * m * m * n + 2 * m**3 for m, n in hidden)]
    return tuple(a + (architecture.depth - 1) * (b - a) for a, b in zip(of(1), of(2)))


def sizes(config):
    """(parameters, operations per step). Counts products, also those of 5 Newton–Schulz steps."""
    model, tokens = MODELS[config.model], config.batch * config.seq
    parameters, dense, orthogonal = counts(model, picked(model.Architecture, config))
    attention = 0 if model is mlp else 12 * config.depth * tokens * config.width * config.seq
    newton_schulz = 5 * orthogonal * (config.optimizer in MUONS["optimizer"])
    return parameters, 6 * tokens * dense + attention + newton_schulz


def work(config):
    """The operations of a run's steps."""
    return config.steps * sizes(config)[1]


def memory(config):
    """A run's bytes, to within a third: Python, activations, weights, gradients, moments."""
    c, tokens = config, config.batch * config.seq
    floats = tokens * (2.5 * (c.depth + 1) * c.width + 2500 if c.model == "mlp" else
                       c.width * (c.depth * (18 + c.seq / c.head_dim) + 10) + 3 * data.VOCAB)
    moments = 2 if c.optimizer == "adamw" else bool(c.momentum)
    floats += (2.3 + moments) * sizes(c)[0]                 # 0.3: the optimizer's work space
    return PROCESS + dtype(c.dtype).itemsize * floats


def check_memory(configs):
    """Refuses a run that needs more memory than this machine has. Errors: ValueError"""
    needed, config = max(((memory(c), c) for c in configs), key=lambda pair: pair[0])
    if config.device == "cpu" and needed > data.machine_memory():
        raise ValueError(f"a network of {sizes(config)[0]:.3g} parameters with --batch "
                         f"{config.batch} and --seq {config.seq} needs {needed / 1e9:.3g} GB, and "
                         f"this machine has {data.machine_memory() / 1e9:.3g} GB: make the "
                         "network, the batch or the sequences smaller")


def seconds_of(config, corpus):
    """The seconds that the second step of a run takes."""
    network, params, optimizer, _ = run.start(config, corpus, None)
    with errstate(all="ignore"):
        for step in (0, 1):
            begun = time.perf_counter()
            to_host(run.training_step(config, network, params, optimizer, corpus, step)[0])
    return time.perf_counter() - begun


def minutes(configs, corpus, jobs):
    """The expected minutes, by timing a small and a larger network; None if that takes long."""
    step = {c: sizes(c)[1] for c in configs}
    fast = sorted((c for c in step if step[c] <= STEP), key=step.get)
    if fast:
        ends = fast[0], fast[-1]
    else:
        ends = [replace(min(step, key=step.get), depth=1, batch=1)] * 2
        if sizes(ends[0])[0] > 2e7:                         # its first step would take long
            return None
    (x, y), (x2, y2) = ((sizes(c)[1], seconds_of(c, corpus)) for c in ends)
    slope = (y2 - y) / (x2 - x) if x2 > x and y2 > y else y2 / x2
    rest = max(0.0, y - slope * x)                          # what does not grow with the network
    evaluation = run.HELD_OUT_BATCHES / 3                   # a forward pass is a third of a step
    total = sum(START + (c.steps + evaluation) * (rest + slope * x) for c, x in step.items())
    return total / min(jobs, os.cpu_count() or 1, len(step)) / 60


def announcement(runs, done, todo, corpus, jobs=None):
    """A line that tells what a sweep will do, with the minutes if its jobs are on this machine."""
    parameters, same = [sizes(c)[0] for c in todo], runs - done - len(todo)
    expected = minutes(todo, corpus, jobs) if jobs else None
    duration = "" if expected is None else (
        f", about {expected:,.0f} minutes" if expected >= 2 else f", about {60 * expected:.0f} s")
    return (f"{runs} run{'s' * (runs > 1)}, {done} of them done"
            + (f", {same} identical to another" if same else "")
            + f": {min(parameters):,} to {max(parameters):,} parameters, "
            + f"{sum(map(work, todo)):.2g} FLOPs{duration}, "
            + f"up to {max(map(memory, todo)) / 1e9:.2g} GB per run")
