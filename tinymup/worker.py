"""One run as a process of its own: `python -m tinymup.worker` reads a job from standard input and prints the record.

A process per run, so that one that dies takes no other with it, and so that the number of BLAS threads can be set before
NumPy loads. Both lines are JSON: {"config": …, "key": …, "checkpoint": path or null, "resume": bool} in, the record out.
"""
import json
import os
import sys
import threading
from pathlib import Path

from . import data
from .network import Config
from .run import train


def main():
    """Reads the job, trains, prints the record."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_the_parent, daemon=True).start()
    config = Config(**{name: tuple(v) if isinstance(v, list) else v for name, v in job["config"].items()})
    checkpoint_path = job["checkpoint"] and Path(job["checkpoint"])
    corpus = data.load(config.data, config.seq)
    if config.key(corpus.digest) != job["key"]:
        raise ValueError("the text has changed since the sweep began")
    record, *_ = train(config, corpus, checkpoint_path, job["resume"], final_checkpoint=False, progress=False)
    if checkpoint_path:
        checkpoint_path.unlink(missing_ok=True)
    print(json.dumps(record))


def end_with_the_parent():
    """The parent holds our standard input open; when it is gone, however it died, so are we."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
