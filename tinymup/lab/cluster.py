"""Runs on a cluster through Dask: `--cluster ADDRESS`. A worker needs Python and requirements.txt.

Code and text are sent once, as a task whose result Dask recomputes if its worker is lost. Each run
is a task that starts its own process, as on this machine.
"""
import functools
import io
import logging
import os
import secrets
import sys
import warnings
import zipfile
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path

from .terminal import say
from .worker import Workers, failed

TIMEOUT = 30            # seconds to reach the scheduler
DEATHS = 3              # a run has failed once so many workers have died during it,
REPEATS = 10            # or once Dask has given it up more often than this


class Cluster:
    """An executor like `sweep.Local`. Errors: ValueError without Dask or a scheduler there."""

    window = 1000        # tasks that the scheduler knows: enough for clusters that grow on demand

    def __init__(self, address, corpus, gpu):
        try:
            import cloudpickle
            import distributed
            from dask.utils import apply
        except ImportError:
            raise ValueError('--cluster needs Dask: pip install "dask[distributed]"') from None
        for name in ("distributed", "distributed.client"):            # we say what matters
            logging.getLogger(name).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", "Sending large graph")      # the text, and only once
        where = {"scheduler_file" if Path(address).is_file() else "address": address}
        try:
            self.client = distributed.Client(**where, timeout=TIMEOUT, set_as_default=False)
        except (OSError, ValueError, TypeError, KeyError, AssertionError) as error:
            distributed.Client.__del__ = lambda _: None     # it would wait for what never started
            raise ValueError(f"--cluster {address}: no Dask scheduler answers there ({error}); "
                             "start `dask scheduler` and name its address or its file") from None
        for name in (__name__, Workers.__module__):   # the workers cannot import us yet
            cloudpickle.register_pickle_by_value(sys.modules[name])
        topic = f"tinymup-{secrets.token_hex(8)}"
        self.starts, self.given_up = Counter(), Counter()   # per run; workers report starts
        self.client.subscribe_topic(topic, lambda event: self.starts.update([event[1]]))
        self.address, self.split = address, [len(corpus.train), len(corpus.held_out)]
        text = corpus.train.tobytes() + corpus.held_out.tobytes()
        packed = cloudpickle.dumps(functools.partial(run, code(), text, topic))
        self.unpack = functools.partial(self.client.submit, cloudpickle.loads, packed, pure=False)
        self.remote_run, self.apply = self.unpack(), apply     # Dask's apply travels by name
        self.needs = {"GPU": 1} if gpu else {}
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        if not any(self.needs.keys() <= worker["resources"].keys() for worker in workers):
            say(f"{address} has no worker{' with --resources GPU=1' if gpu else ''} yet: "
                "waiting for one")

    def submit(self, config, key, checkpoint, resume):
        """A future of the record."""
        job = {"config": dict(vars(config)), "key": key, "checkpoint": checkpoint,
               "resume": resume, "split": self.split}
        if self.remote_run.status == "error":         # too many workers died as they unpacked it
            self.remote_run = self.unpack()
        # Under one name the tasks are a group, of which Dask keeps most until a worker is free.
        return self.client.submit(self.apply, self.remote_run, [job], resources=self.needs or None,
                                  pure=False, key=f"tinymup-{secrets.token_hex(16)}")

    def record(self, future, config, key):
        """The record of a future that has ended; None if the run is to be submitted again."""
        if future.cancelled() or self.client.status != "running":
            raise ValueError(f"the Dask scheduler at {self.address} is gone: finished runs are "
                             "kept, and the same command goes on once there is a scheduler")
        error = future.exception()
        if error is None:
            return future.result()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        if type(error).__name__ == "KilledWorker":
            self.given_up[key] += 1           # also without a start, when its worker died
            if self.starts[key] < DEATHS and self.given_up[key] <= REPEATS:
                return None
            reason = (f"{self.starts[key]} workers died while they did this run"
                      if self.starts[key] >= DEATHS else
                      f"workers died {self.given_up[key]} times before this run started")
        return failed({"key": key, "config": dict(vars(config))}, reason)

    def running(self, keys):
        """How many of the runs that are not finished have started."""
        return sum(key in self.starts for key in keys)

    def stop(self):
        """Leaves the cluster. Its workers end the runs that nobody waits for."""
        self.client.close(timeout=5)

    close = stop


def code():
    """The package, zipped."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(Path(__file__).parents[1].rglob("*.py")):
            archive.write(path, path.relative_to(Path(__file__).parents[2]))
    return file.getvalue()


def run(code, text, topic, job):
    """Does a job; runs in a thread of a Dask worker."""
    import distributed
    dask = distributed.get_worker()
    dask.log_event(topic, job["key"])
    task, folder = dask.get_current_task(), Path(dask.local_directory)
    package = folder / f"tinymup-{zlib.crc32(code):08x}"
    if not package.exists():
        unpacked = folder / f"unpacked-{secrets.token_hex(8)}"
        zipfile.ZipFile(io.BytesIO(code)).extractall(unpacked)
        with suppress(OSError):                       # another thread was faster
            unpacked.rename(package)
    if not os.path.exists(os.path.join(os.path.dirname(job["checkpoint"]), "results.jsonl")):
        job = job | {"checkpoint": None}              # the folder is on another machine

    def wanted():
        return (dask.status.name not in ("closing", "closed")
                and getattr(dask.state.tasks.get(task), "state", "") == "executing")

    return Workers(2, [str(package), *sys.path]).do(job, text, wanted)   # so one BLAS thread
