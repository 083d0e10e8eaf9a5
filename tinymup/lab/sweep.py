"""Many runs: the grid, and workers side by side."""
import functools
import itertools
import math
import platform
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace

import numpy
from tqdm import tqdm

from .cluster import Cluster
from .config import MODELS, complete, flag, normalised, picked, spelled, stranger
from .results import finished
from .terminal import say, watched
from .worker import THREADS, Workers  # noqa: F401


def grid(base, axes):
    """All combinations of axes {field: values} in the config base, complete, most work first.

    Where only some combinations use a field, the others run without it.
    Errors: ValueError for a field that none of them uses, and those of `complete`.
    """
    combinations = [replace(base, **dict(zip(axes, values)))
                    for values in itertools.product(*axes.values())]
    for name, values in axes.items():
        strangers = [stranger(config, name) for config in combinations]
        if None not in strangers:
            raise ValueError(f"{flag(name)} {spelled(values[0])} means nothing to "
                             f"{' and '.join(dict.fromkeys(strangers))}: leave it out")
    configs = dict.fromkeys(complete(normalised(config)) for config in combinations)
    return sorted(configs, key=work, reverse=True)   # long runs last would leave workers idle


def work(config):
    """What the time of a run is proportional to: tokens × parameters."""
    model = MODELS[config.model]
    return (config.steps * config.batch * config.seq
            * parameters(model, picked(model.Architecture, config)))


@functools.lru_cache
def parameters(model, architecture):
    """The number of parameters of a network."""
    return sum(math.prod(spec.shape) for spec in model.specs(architecture))


class Local:
    """Runs on this machine, as many at a time as there are jobs."""

    def __init__(self, jobs):
        self.workers, self.pool, self.slots = Workers(jobs), ThreadPoolExecutor(jobs), jobs
        self.window = 2 * jobs            # a worker finds its next run without waiting for the disk

    def submit(self, config, key, checkpoint, resume):
        """A future of the record."""
        return self.pool.submit(self.workers.train, config, key, checkpoint, resume)

    def record(self, future, config, key):
        """The record of a future that has ended."""
        return future.result()

    def stop(self):
        """Ends all runs."""
        self.workers.kill()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def close(self):
        """Waits for the threads."""
        self.pool.shutdown()


class Sweep:
    """The runs of a sweep that are not finished, and what is told of them.

    Only the thread that calls `train` writes the results file.
    """

    def __init__(self, todo, keys, results, shown):
        self.todo, self.keys, self.results, self.shown = todo, keys, results, shown
        self.records, self.running, self.warned = {}, {}, set()
        self.counts = dict.fromkeys(("done", "diverged", "failed"), 0)
        self.start = self.told = time.monotonic()
        self.bar = tqdm(total=len(todo), unit="run", disable=not (shown and watched()))

    def train(self, executor, resume):
        """Keeps the executor busy until all is done. Whatever happens, finished runs are kept."""
        waiting, ended = iter(self.todo), queue.SimpleQueue()
        try:
            while True:
                for config in itertools.islice(waiting, executor.window - len(self.running)):
                    key = self.keys[config]
                    checkpoint = str(self.results.path.parent / f"{key}.npz")
                    future = executor.submit(config, key, checkpoint, resume)
                    self.running[future] = config
                    future.add_done_callback(ended.put)
                if not self.running:
                    return
                self.keep(ended.get(), executor)
        except BaseException as error:
            try:
                self.rescue(executor)
            finally:
                executor.stop()
            if isinstance(error, RuntimeError) and "thread" in str(error):   # none can be started
                raise ValueError(f"{error}: choose fewer --jobs; finished runs are kept") from None
            raise

    def rescue(self, executor):
        """Writes the records of runs that have ended and wait for it."""
        for future in [f for f in self.running if f.done()]:
            with suppress(ValueError):
                self.keep(future, executor)

    def keep(self, future, executor):
        """Writes the record of a run that has ended. Then its checkpoint is no longer needed."""
        config = self.running[future]
        record = executor.record(future, config, self.keys[config])
        warnings = record.pop("warnings", [])
        self.results.append(record)
        self.records[record["key"]] = record
        del self.running[future]
        if finished(record):
            with suppress(OSError):
                (self.results.path.parent / f"{record['key']}.npz").unlink(missing_ok=True)
        self.counts[record["status"]] += 1
        self.tell(described(config, record))
        for warning in [*warnings, *differences(record)]:
            kind = warning.split(":")[1]
            if kind not in self.warned:
                self.warned.add(kind)
                self.tell(warning)
        self.show(min(executor.slots, len(self.running)))

    def tell(self, text):
        """A line above the progress bar."""
        if self.shown:
            self.bar.clear()
            say(text)

    def show(self, running):
        """How far the sweep is: in the bar on a terminal, elsewhere in a line a minute."""
        ended, now = sum(self.counts.values()), time.monotonic()
        left = (len(self.todo) - ended) * (now - self.start) / ended
        status = (f"{running} running, {ended - self.counts['failed']} done, "
                  f"{self.counts['failed']} failed, "
                  f"{60 * ended / (now - self.start):.3g} runs/min, {left / 60:.0f} min left")
        self.bar.set_postfix_str(status, refresh=False)
        self.bar.update()
        if self.bar.disable and now - self.told > 60:
            self.told = now
            self.tell(status)


def differences(record):
    """A warning for each version of the run that is not that of this process."""
    here = {"python": platform.python_version(), "numpy": numpy.__version__}
    there = record.get("versions", {})
    return [f"warning: a run used another {name}: {there[name]}, not {version}: its bits may "
            "differ (record: versions)" for name, version in here.items()
            if there.get(name, version) != version]


def run_all(configs, corpus, results, jobs=1, resume=False, progress=True, cluster=None):
    """Trains the runs that results lacks and returns the records of configs, in their order.

    cluster: the address of a Dask scheduler, or its file, instead of jobs on this machine.
    """
    keys = {config: config.key(corpus.digest) for config in configs}
    records = results.read()
    todo = [config for config in configs if not finished(records.get(keys[config]))]
    if progress and len(todo) < len(configs):
        say(f"{len(configs) - len(todo)} of {len(configs)} runs are in {results.path} already")
    if todo:
        executor = Cluster(cluster, corpus) if cluster else Local(jobs)
        sweep = Sweep(todo, keys, results, progress)
        with closing(executor), sweep.bar:
            sweep.train(executor, resume)
        records |= sweep.records
    # The config that was asked for: a record must not say of itself which run it is.
    return [records[keys[config]] | {"config": dict(vars(config))} for config in configs]


def described(config, record):
    """A finished run in one line."""
    outcome = (f"loss {record['loss']:.4f}" if record["status"] == "done"
               else record["status"] + " " + record.get("reason", ""))
    return (f"{config.param:10} {config.optimizer:6} width {config.width:5d} "
            f"lr 2^{math.log2(config.lr):<6.3g} seed {config.seed}   {outcome}")
