"""One run in its own process: both ends, the process and what starts it.

A run that dies takes no other with it, and the number of BLAS threads is set before NumPy loads.
The process reads its job, a line of JSON, on standard input: {"config": …, "key": …, "checkpoint":
path or null, "resume": bool, "split": null or [a, b]}. After a split follow the text's a + b bytes.
It writes the record, a line of JSON, where standard output was; output of others goes to stderr.

A cluster gets this module's text and nothing else of the package before it can import the rest.
So the imports of the run itself are in `main`.
"""
import json
import os
import subprocess
import sys
import threading

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
# The path comes first: until then Python would import from the current folder. Ctrl-C reaches all
# processes of a terminal, and is the sweep's to handle.
START = """import sys
sys.path[:] = {path}
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from tinymup.lab.worker import main
main()"""


class Workers:
    """Starts worker processes and, if the sweep ends early, ends them."""

    def __init__(self, jobs, path=None):
        # With several BLAS threads each, workers would wait for one another.
        self.environment = os.environ | (dict.fromkeys(THREADS, "1") if jobs > 1 else {})
        self.path = [os.path.abspath(folder) for folder in (path or sys.path)]
        self.running, self.starting, self.ended = set(), threading.Lock(), False

    def train(self, config, key, checkpoint, resume):
        """The record of one run in its own process; `failed`, with a reason, if that went wrong."""
        return self.do({"config": dict(vars(config)), "key": key, "checkpoint": checkpoint,
                        "resume": resume, "split": None})

    def do(self, job, text=b"", wanted=lambda: True):
        """The record of a job. Every second asks whether the run is still wanted."""
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
        stdin, process.stdin = process.stdin, None    # open while we live, also in communicate
        try:
            try:
                stdin.write(given)
                stdin.flush()
            except OSError:
                pass                                  # it died already; its exit status says how
            while True:
                try:
                    stdout, stderr = process.communicate(timeout=1)
                    return process.returncode, stdout, stderr
                except subprocess.TimeoutExpired:
                    if not wanted():
                        process.kill()
        finally:
            try:
                stdin.close()
            except OSError:
                pass
            self.running.discard(process)

    def kill(self):
        """Ends all workers at once, and starts no more."""
        with self.starting:
            self.ended = True
            for process in list(self.running):
                process.kill()


def failed(job, reason):
    """The record of a run that has none."""
    return {"key": job["key"], "status": "failed", "loss": None, "config": job["config"],
            "reason": reason}


def main():
    """Reads the job, trains, writes the record."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                                     # noise must not look like a record
    import hashlib
    from pathlib import Path

    import numpy

    from . import data
    from .config import restored
    from .run import train
    job = json.loads(sys.stdin.buffer.readline())
    split = job["split"]
    text = numpy.frombuffer(sys.stdin.buffer.read(sum(split)), numpy.uint8) if split else None
    threading.Thread(target=end_with_the_parent, daemon=True).start()
    config = restored(job["config"])
    corpus = data.load(config.data, config.seq) if text is None else data.Corpus(
        text[:split[0]], text[split[0]:], hashlib.sha256(text).hexdigest()[:12])
    if config.key(corpus.digest) != job["key"]:
        raise ValueError("the text has changed since the sweep began")
    record, *_ = train(config, corpus, job["checkpoint"] and Path(job["checkpoint"]),
                       job["resume"], final_checkpoint=False, progress=False)
    channel.write("\n" + json.dumps(record) + "\n")   # on a line of its own
    channel.flush()


def end_with_the_parent():
    """Ends this process with its parent, which holds our standard input open while it lives."""
    while os.read(0, 1024):
        pass
    os._exit(1)
