"""Many runs: the grid, and workers side by side."""
import collections
import itertools
import math
import platform
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import numpy
from tqdm import tqdm

from . import optimum, plan
from .cluster import Cluster
from .config import changed, complete, flag, normalised, same_program, spelled, unused
from .results import finished
from .terminal import say, watched
from .worker import Workers


def grid(base, axes):
    """The complete configs of all combinations of axes {field: values}, the most work first.

    Where only some combinations use a field, the others run without it.
    Errors: ValueError for a field that none of them uses, and those of `complete`.
    """
    combinations = [changed(base, dict(zip(axes, values)))
                    for values in itertools.product(*axes.values())]
    not_used = list(map(unused, combinations))
    for name, values in axes.items():
        reasons = [skipped.get(name) for skipped in not_used]
        if None not in reasons:
            raise ValueError(f"{flag(name)} {spelled(values[0])} has no effect with "
                             f"{' and '.join(dict.fromkeys(reasons))}: leave it out")
    configs = dict.fromkeys(complete(normalised(config)) for config in combinations)
    # Long runs last would leave workers idle.
    return sorted(configs, key=plan.work, reverse=True)


class Local:
    """Runs on this machine, as many at a time as there are jobs."""

    def __init__(self, jobs):
        self.workers, self.pool, self.jobs = Workers(jobs), ThreadPoolExecutor(jobs), jobs
        self.window = 2 * jobs            # a worker finds its next run without waiting for the disk

    def submit(self, config, key, checkpoint, resume):
        """A future of the record."""
        return self.pool.submit(self.workers.train, config, key, checkpoint, resume)

    def record(self, future, config, key):
        """The record of a future that has ended."""
        return future.result()

    def running(self, keys):
        """How many of the runs that are not finished have started."""
        return min(self.jobs, len(keys))

    def stop(self):
        """Ends all runs."""
        self.workers.kill()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def close(self):
        """Waits for the threads."""
        self.pool.shutdown()


class Sweep:
    """The unfinished runs of a sweep, and its messages.

    Only the thread that calls `train` writes to the results file.
    """

    def __init__(self, todo, results, shown, varying=()):
        self.todo, self.results, self.shown = todo, results, shown    # todo: key → config
        self.told = [f for f in varying if f not in ("param", "optimizer")]   # see `described`
        self.waiting, self.submitted = collections.deque(todo), {}    # keys; future → key
        self.records, self.warned = {}, set()
        self.counts = dict.fromkeys(("done", "diverged", "failed"), 0)
        self.left = self.total = sum(map(plan.work, todo.values()))
        self.start = self.shown_at = time.monotonic()
        self.bar = tqdm(total=len(todo), unit="run", disable=not (shown and watched()))

    def train(self, executor, resume):
        """Keeps the executor busy until all is done. Whatever happens, finished runs are kept."""
        ended = queue.SimpleQueue()
        try:
            while self.waiting or self.submitted:
                while self.waiting and len(self.submitted) < executor.window:
                    key = self.waiting.popleft()
                    checkpoint = str(self.results.path.absolute().with_name(f"{key}.npz"))
                    future = executor.submit(self.todo[key], key, checkpoint, resume)
                    self.submitted[future] = key
                    future.add_done_callback(ended.put)
                self.keep(ended.get(), executor)
        except BaseException as error:
            try:
                for future in [f for f in self.submitted if f.done()]:
                    with suppress(ValueError):
                        self.keep(future, executor)
            finally:
                executor.stop()
            if isinstance(error, RuntimeError) and "thread" in str(error):   # none can be started
                raise ValueError(f"{error}: choose fewer --jobs; finished runs are kept") from None
            raise

    def keep(self, future, executor):
        """Writes the record of a run that has ended. Then its checkpoint is no longer needed."""
        key = self.submitted[future]
        record = executor.record(future, self.todo[key], key)
        if record is None:
            self.waiting.appendleft(key)
            del self.submitted[future]
            return
        warnings = record.pop("warnings", [])
        self.results.append(record)
        self.records[key] = record
        del self.submitted[future]
        if finished(record):
            with suppress(OSError):
                self.results.path.with_name(f"{key}.npz").unlink(missing_ok=True)
        self.counts[record["status"]] += 1
        self.left -= plan.work(self.todo[key])
        self.tell(described(self.todo[key], record, self.told))
        for warning in [*warnings, *differences(record)]:
            kind = warning.split(":")[1]
            if kind not in self.warned:
                self.warned.add(kind)
                self.tell(warning)
        self.show(executor.running(self.submitted.values()))

    def tell(self, text):
        """A line above the progress bar."""
        if self.shown:
            self.bar.clear()
            say(text)

    def show(self, running):
        """How far the sweep is: in the bar on a terminal, elsewhere in a line a minute."""
        ended, now = sum(self.counts.values()), time.monotonic()
        left = self.left * (now - self.start) / (self.total - self.left)
        failed = self.counts["failed"]
        status = (f"{running} running, {ended - failed} done, {failed} failed, "
                  f"{60 * ended / (now - self.start):.3g} runs/min, {left / 60:.0f} min left")
        self.bar.set_postfix_str(status, refresh=False)
        self.bar.update()
        if self.bar.disable and now - self.shown_at > 60:
            self.shown_at = now
            self.tell(status)


def differences(record):
    """A warning for each package whose version differs between the run and this process."""
    here = {"python": platform.python_version(), "numpy": numpy.__version__}
    there = here | record.get("versions", {})
    return [f"warning: a run used another {name}: {there[name]}, not {version}: its bits may "
            "differ (record: versions)" for name, version in here.items() if there[name] != version]


def run_all(configs, corpus, results, jobs=1, resume=False, shown=True, cluster=None):
    """Trains the runs that results lacks and returns the records of configs, in their order.

    Runs that are the same program are trained once; the others get its record under their key.
    cluster: the address of a Dask scheduler, or its file, instead of jobs on this machine.
    """
    wanted = {config.key(corpus.digest): config for config in configs}
    records = results.read()
    known = {r.get("program", key): r for key, r in records.items() if finished(r)}
    missing = [key for key in wanted if not finished(records.get(key))]
    programs = {key: same_program(wanted[key]).key(corpus.digest) for key in missing}
    first = {programs[key]: key for key in reversed(missing)}      # program → its first key
    todo = {key: wanted[key] for key in missing
            if key == first[programs[key]] and programs[key] not in known}
    if todo:
        executor = Cluster(cluster, corpus, configs[0].device == "gpu") if cluster else Local(jobs)
        sweep = Sweep(todo, results, shown, optimum.group_fields([*map(vars, configs)], "width"))
        with closing(executor), sweep.bar:
            if shown:
                say(plan.announcement(len(wanted), len(wanted) - len(missing), list(todo.values()),
                                      corpus, None if cluster else jobs))
            sweep.train(executor, resume)
        records |= sweep.records
        known |= {programs[key]: record for key, record in sweep.records.items()}
    elif shown:
        known_as = f", {len(missing)} of them under another name" if missing else ""
        say(f"all {len(wanted)} runs are in {results.path} already{known_as}")
    for key in missing:
        if key not in todo:
            records[key] = known[programs[key]] | {"key": key, "config": dict(vars(wanted[key]))}
            results.append(records[key])
    # With the config that was asked for: the one in the file could have been edited.
    return [records[key] | {"config": vars(config)} for key, config in wanted.items()]


def described(config, record, more=()):
    """A run that has ended, in one line. more: fields to name besides those of every run."""
    outcome = (f"loss {record['loss']:.4f}" if record["status"] == "done"
               else record["status"] + " " + record.get("reason", ""))
    return (f"{config.param:10} {config.optimizer:6} width {config.width:5d} "
            f"lr 2^{math.log2(config.lr):<6.3g} seed {config.seed}   "
            + "".join(f"{name} {spelled(vars(config)[name])}   " for name in more) + outcome)
