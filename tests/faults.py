"""A campaign of faults against sweeps: `python tests/faults.py --tries 1000 --seed 0 --jobs 2`.

A try starts a small sweep, disturbs it in one of the ways of the table KINDS, and runs the same
command once more without a disturbance. Then what was finished before must still be there, all
records must equal those of an undisturbed sweep to the last bit, and nothing may hang or show a
traceback. `--only KIND --seed N` repeats the tries of one kind.
"""
import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import fault_inputs as inputs
import fault_kinds as faults
from fault_tries import OUTCOMES, Campaign, Command, Failed, Try


class Kind(NamedTuple):
    """A kind of fault: its name in the table, how it disturbs, its weight, where it is possible."""

    words: str
    disturb: object
    weight: int
    possible: object = lambda: True


def root():
    """Whether we may mount a disk and become other users."""
    return hasattr(os, "getuid") and os.getuid() == 0


def has_dask():
    """Whether Dask is installed."""
    return subprocess.run([sys.executable, "-c", "import distributed"],
                          stderr=subprocess.DEVNULL).returncode == 0


KINDS = {
    "kill_sweep": Kind("SIGKILL of the sweep", faults.kill_sweep, 100),
    "kill_worker": Kind("SIGKILL of a run", faults.kill_worker, 70),
    "kill_dask_worker": Kind("SIGKILL of a Dask worker", faults.kill_dask_worker, 30, has_dask),
    "kill_dask_scheduler": Kind("SIGKILL of the Dask cluster", faults.kill_dask_scheduler, 30,
                                has_dask),
    "signal": Kind("SIGINT, SIGTERM, SIGHUP", faults.send_signal, 90),
    "cut_results": Kind("results.jsonl cut", lambda t: faults.results(t, "cut"), 50),
    "flip_results": Kind("results.jsonl, a bit flipped", lambda t: faults.results(t, "flip"), 50),
    "cut_checkpoints": Kind("checkpoints cut", lambda t: faults.checkpoints(t, "cut"), 40),
    "flip_checkpoints": Kind("checkpoints, a bit flipped",
                             lambda t: faults.checkpoints(t, "flip"), 40),
    "disk_full": Kind("disk full", faults.disk_full, 40, root),
    "quota": Kind("quota (RLIMIT_FSIZE)", faults.quota, 30),
    "descriptors": Kind("few descriptors (RLIMIT_NOFILE)", faults.descriptors, 30),
    "memory": Kind("little memory (RLIMIT_AS)", faults.memory, 40),
    "processes": Kind("few processes (RLIMIT_NPROC)", faults.processes, 30, root),
    "two_sweeps": Kind("two sweeps in one folder", faults.two_sweeps, 30),
    "streams": Kind("streams closed, full, broken, `head`", faults.streams, 40),
    "surroundings": Kind("locale and variables", faults.surroundings, 30),
    "current_folder": Kind("current folder gone or shadowing", faults.current_folder, 20),
    "paths": Kind("odd paths and links", inputs.paths, 30),
    "bad_command": Kind("wrong command lines", inputs.bad_command, 130),
    "bad_data": Kind("wrong data", inputs.bad_data, 50),
}


def attempt(campaign, kind, seed, quick=False):
    """(outcome, sentence) of one try; outcome "survived" if nothing went wrong."""
    made = Try(campaign, kind, seed, quick)
    try:
        KINDS[kind].disturb(made)
    except Failed as failure:
        return failure.args
    except Exception as error:                     # of the campaign itself: the others go on
        return "other", repr(error)
    finally:
        made.close()
    return "survived", ""


def share(tries, kinds):
    """{kind: its number of tries}, by weight."""
    total = sum(kind.weight for kind in kinds.values())
    ends = [round(tries * sum(k.weight for k in list(kinds.values())[:i]) / total)
            for i in range(len(kinds) + 1)]
    return {name: end - start for name, start, end in zip(kinds, ends, ends[1:])}


def table(kinds, counts):
    """The table of a campaign, in Markdown."""
    header = ["kind", "tries", "survived", *OUTCOMES]
    rows = [[kind.words, *(str(counts[name, x]) for x in header[1:])]
            for name, kind in kinds.items() if counts[name, "tries"]]
    rows += [["all", *(str(sum(int(row[i]) for row in rows)) for i in range(1, len(header)))]]
    rows = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main():
    """Runs the campaign and prints its table. Exit status 1 if a try went wrong."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--tries", type=int, default=1000)
    p.add_argument("--seed", type=int, default=0, help="of the first try of each kind")
    p.add_argument("--jobs", type=int, default=2, help="tries side by side")
    p.add_argument("--only", choices=KINDS, help="a single kind; one try if --tries is left out")
    flags = p.parse_args()
    kinds, tries = KINDS, flags.tries
    if flags.only:
        kinds, tries = {flags.only: kinds[flags.only]}, tries if "--tries" in sys.argv else 1
    todo = [(name, flags.seed + i) for name, n in share(tries, kinds).items() for i in range(n)
            if kinds[name].possible()]
    random.Random(flags.seed).shuffle(todo)
    counts = Counter()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        campaign, pool = Campaign(Path(folder)), ThreadPoolExecutor(flags.jobs)
        futures = {pool.submit(attempt, campaign, *one): one for one in todo}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                (kind, seed), (result, text) = futures[future], future.result()
                counts.update([(kind, "tries"), (kind, result)])
                if text:
                    print(f"--only {kind} --seed {seed}: {result}: {text}", flush=True)
                if done % 100 == 0:
                    print(f"{done} of {len(todo)} tries", file=sys.stderr)
        finally:                                   # also after Ctrl-C
            pool.shutdown(wait=False, cancel_futures=True)
            while Command.alive and not all(future.done() for future in futures):
                for command in list(Command.alive):
                    command.kill()
                time.sleep(0.01)
            pool.shutdown()
    print(table(kinds, counts))
    print(f"{len(Command.alive)} processes left behind")
    return int(any(counts[name, x] for name in kinds for x in OUTCOMES) or bool(Command.alive))


if __name__ == "__main__":
    sys.exit(main())
