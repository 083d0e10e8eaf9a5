"""Does a job in a process of its own: the parent's side (`Workers`) and the child's (`main`).

If one run dies the others go on, and BLAS threads are limited before NumPy loads.
The process reads its job from standard input, a line of JSON: {"config": …, "key": …, "checkpoint":
path or null, "resume": bool, "split": null or [a, b]}. With a split, a bytes of training text and b
held-out bytes follow.
It writes the record, a line of JSON, to standard output. Whatever else it prints goes to stderr.

A cluster receives this module before it can import the package. So the imports of the run itself
are in `main`.
"""
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
# The path comes first: before it is set, Python imports from the current folder. Ctrl-C reaches all
# processes of a terminal, and the sweep handles it.
START = """import sys
sys.path[:] = {path}
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from tinymup.lab.worker import main
main()"""


class Workers:
    """Starts worker processes and, if the sweep ends early, ends them."""

    def __init__(self, jobs, path=None):
        # Several workers with all BLAS threads each would wait for one another.
        self.environment = os.environ | (dict.fromkeys(THREADS, "1") if jobs > 1 else {})
        self.path = [os.path.abspath(folder) for folder in (path or sys.path)]
        self.running, self.starting, self.ended = set(), threading.Lock(), False

    def train(self, config, key, checkpoint, resume):
        """The record of a complete config, or that of `failed`."""
        return self.do({"config": dict(vars(config)), "key": key, "checkpoint": checkpoint,
                        "resume": resume, "split": None})

    def do(self, job, text=b"", wanted=lambda: True):
        """The record of a job, or of `failed`. Kills the process when wanted() becomes false."""
        try:
            status, stdout, stderr = self.process(json.dumps(job).encode() + b"\n" + text, wanted)
        except OSError as error:
            return failed(job, f"no process can be started: {error.strerror}")
        said = stderr.decode(errors="replace").strip().splitlines()
        try:
            if status == 0:
                warnings = [line for line in said if line.startswith("warning: ")]
                return json.loads(stdout.splitlines()[-1]) | {"warnings": warnings}
        except (ValueError, LookupError, TypeError):
            return failed(job, "the process ended without a record")
        return failed(job, f"killed by signal {-status}" if status < 0
                      else said[-1] if said else f"exit status {status}")

    def process(self, given, wanted):
        """(exit status, stdout, stderr) of a worker process that was given these bytes."""
        with self.starting:
            if self.ended:
                raise InterruptedError(0, "the sweep has ended")
            process = subprocess.Popen(
                [sys.executable, "-c", START.format(path=ascii(self.path))], env=self.environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.running.add(process)
        stdin, process.stdin = process.stdin, None    # else communicate closes it: the run ends
        try:
            with suppress(OSError):                   # if it has died, its exit status says how
                stdin.write(given)
                stdin.flush()
            while True:
                try:
                    stdout, stderr = process.communicate(timeout=1)
                    return process.returncode, stdout, stderr
                except subprocess.TimeoutExpired:
                    if not wanted():
                        process.kill()
        finally:
            with suppress(OSError):
                stdin.close()
            self.running.discard(process)

    def kill(self):
        """Ends all workers at once, and starts no more."""
        with self.starting:
            self.ended = True
            for process in list(self.running):
                process.kill()


def failed(job, reason):
    """The record of a run that failed, with the reason."""
    return {"key": job["key"], "status": "failed", "loss": None, "config": job["config"],
            "reason": reason}


def main():
    """Reads the job, trains, writes the record."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                                     # what anything else prints goes to stderr
    from pathlib import Path

    from . import data
    from .config import restored
    from .run import train
    job = json.loads(sys.stdin.buffer.readline())
    split = job["split"]
    text = sys.stdin.buffer.read(sum(split or []))
    threading.Thread(target=end_with_the_parent, daemon=True).start()
    config = restored(job["config"])
    corpus = data.split(text, split[0]) if split else data.load(config.data, config.seq)
    if config.key(corpus.digest) != job["key"]:
        raise ValueError("the text has changed since the sweep began")
    record, *_ = train(config, corpus, job["checkpoint"] and Path(job["checkpoint"]),
                       job["resume"], final_checkpoint=False, shown=False)
    channel.write("\n" + json.dumps(record) + "\n")   # on a line of its own
    channel.flush()


def end_with_the_parent():
    """Ends this process when its parent dies, because our standard input is then closed."""
    while os.read(0, 1024):
        pass
    os._exit(1)
