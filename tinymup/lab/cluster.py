"""Runs on a cluster through Dask: `--cluster ADDRESS`. A worker needs Python and requirements.txt.

Code and text travel once, as a task that Dask repeats wherever its result is lost. Each run is a
task that starts its own process, as on this machine.
"""
import io
import logging
import os
import secrets
import sys
import zipfile
import zlib
from pathlib import Path

from .terminal import say_once
from .worker import Workers, failed

ROOT = Path(__file__).parents[2]


class Cluster:
    """An executor like `sweep.Local`.

    Errors: ValueError, one line, without Dask or without a scheduler at the address.
    """

    window = 1000        # tasks that the scheduler knows: enough for clusters that grow on demand

    def __init__(self, address, corpus):
        try:
            import cloudpickle
            import distributed
            from dask.utils import apply
        except ImportError:
            raise ValueError('--cluster needs Dask: pip install "dask[distributed]"') from None
        logging.getLogger("distributed").setLevel(logging.CRITICAL)   # we say what matters
        where = {"scheduler_file" if Path(address).is_file() else "address": address}
        try:
            self.client = distributed.Client(**where, timeout=20, set_as_default=False)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"--cluster {address}: no Dask scheduler answers there ({error}); "
                             "start `dask scheduler` and name its address or its file") from None
        for name in (__name__, Workers.__module__):   # the workers cannot import us yet
            cloudpickle.register_pickle_by_value(sys.modules[name])
        self.address, self.split = address, [len(corpus.train), len(corpus.held_out)]
        text = corpus.train.tobytes() + corpus.held_out.tobytes()
        self.luggage = self.client.submit(dict, code=code(), text=text, pure=False)
        self.run = self.client.submit(cloudpickle.loads, cloudpickle.dumps(run), pure=False)
        self.apply = apply                            # Dask itself sends functions by name

    @property
    def slots(self):
        """Runs at a time."""
        return sum(self.client.nthreads().values())

    def submit(self, config, key, checkpoint, resume):
        """A future of the record."""
        job = {"config": dict(vars(config)), "key": key, "checkpoint": checkpoint,
               "resume": resume, "split": self.split}
        needs = {"GPU": 1} if config.device == "gpu" else {}
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        if not any(needs.keys() <= worker["resources"].keys() for worker in workers):
            say_once(f"{self.address} has no worker{' with --resources GPU=1' if needs else ''} "
                     "yet: waiting for one")
        return self.client.submit(self.apply, self.run, [self.luggage, job], pure=False,
                                  key=f"{key}-{secrets.token_hex(8)}", resources=needs or None)

    def record(self, future, config, key):
        """The record of a future that has ended."""
        if future.cancelled() or self.client.status != "running":
            raise ValueError(f"the Dask scheduler at {self.address} is gone: finished runs are "
                             "kept, and the same command goes on once there is a scheduler")
        error = future.exception()
        if error is None:
            return future.result()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return failed({"key": key, "config": dict(vars(config))}, reason)

    def stop(self):
        """Leaves the cluster. Its workers end the runs that nobody waits for."""
        self.client.close(timeout=5)

    close = stop


def code():
    """The package, zipped."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted((ROOT / "tinymup").rglob("*.py")):
            archive.write(path, path.relative_to(ROOT))
    return file.getvalue()


def run(luggage, job):
    """Does a job; runs in a thread of a Dask worker."""
    import distributed
    dask = distributed.get_worker()
    key, folder = dask.get_current_task(), Path(dask.local_directory)
    package = folder / f"tinymup-{zlib.crc32(luggage['code']):08x}"
    if not package.exists():
        unpacked = folder / f"unpacked-{secrets.token_hex(8)}"
        zipfile.ZipFile(io.BytesIO(luggage["code"])).extractall(unpacked)
        try:
            unpacked.rename(package)
        except OSError:
            pass                                      # another thread was faster
    if not os.path.exists(os.path.join(os.path.dirname(job["checkpoint"]), "results.jsonl")):
        job = job | {"checkpoint": None}              # the folder is on another machine
    def wanted():
        return getattr(dask.state.tasks.get(key), "state", "") == "executing"
    return Workers(2, [str(package), *sys.path]).do(job, luggage["text"], wanted)
