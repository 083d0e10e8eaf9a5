"""A try of faults.py: commands in sessions of their own, and what must hold after a fault."""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tinymup.lab.results import finished, parsed  # noqa: E402

SWEEP = ["--model", "mlp", "transformer", "--width", "32", "--lr", "2^-7:2^-6", "--steps", "40",
         "--batch", "2", "--seq", "16", "--jobs", "2", "--no-plot"]
TOLD = re.compile(r"^\w+ +\w+ +width .*lr 2\^.*$", re.M)
OUTCOMES = ("lost", "changed", "hung", "traceback", "other")
LIMIT = 120     # seconds until a command counts as hung
# A clock so fast that a run writes a checkpoint, else due once a minute, at every log point.
CLOCK = "import time\nclock = time.perf_counter\ntime.perf_counter = lambda: 1e6 * clock()\n"
# Runs a line of Python in the process that becomes the command: limits, closed streams, users.
LAUNCH = "import os, sys; exec(sys.argv[1]); os.execvp(sys.argv[2], sys.argv[2:])"


class Failed(Exception):
    """What went wrong in a try: one of OUTCOMES, and a sentence."""


class Command:
    """A command in a session of its own. Its streams are files, if it is not given others."""

    alive = set()

    def __init__(self, words, out, name, before="", prefix=(), **settings):
        self.out, self.files, self.heard = out, {}, True
        for stream in {"stdout", "stderr"} - settings.keys():
            self.files[stream] = Path(f"{name}.{stream}")
            settings[stream] = open(self.files[stream], "wb")
        given = {"stdin": subprocess.DEVNULL, "start_new_session": True} | settings
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-IS", "-c", LAUNCH, before,
                 *map(str, [*prefix, sys.executable, *words])],
                **given)
        finally:
            for stream in self.files:
                settings[stream].close()
        self.alive.add(self)

    def said(self, stream="stderr"):
        """What the command has written to a stream so far."""
        file = self.files.get(stream)
        return file.read_text(errors="replace") if file else ""

    def ended(self):
        """Whether the command itself has ended."""
        return self.process.poll() is not None

    def gone(self):
        """Whether the command and all that it started have ended."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return self.ended()
        return False

    def until(self, condition, what):
        """Waits until the condition holds or the command has ended."""
        end = time.monotonic() + LIMIT
        while not condition() and not self.ended():
            if time.monotonic() > end:
                raise Failed("hung", f"no {what} in {LIMIT} s: {self.said()[-300:]!r}")
            time.sleep(0.002)

    def wait(self):
        """The exit status, once the command and all that it started have ended."""
        self.until(self.ended, "end")
        end = time.monotonic() + LIMIT
        while not self.gone():
            if time.monotonic() > end:
                raise Failed("hung", "a process outlives the command")
            time.sleep(0.002)
        self.alive.discard(self)
        for stream in ("stdout", "stderr"):
            if "Traceback" in self.said(stream):
                raise Failed("traceback", repr(self.said(stream)[-1500:]))
        return self.process.returncode

    def kill(self):
        """Ends the command and all that it started, if it has not ended."""
        if not self.gone():                        # so the number is still that of our session
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.alive.discard(self)

    def workers(self):
        """The process ids of the children."""
        found = []
        for file in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            with suppress(OSError):
                found += map(int, file.read_text().split())
        return found


def records_of(folder):
    """{(model, log2 of lr): the last record} of the undamaged lines of a results file."""
    return {(r["config"]["model"], r["config"]["lr"]): r
            for r in map(parsed, lines_of(folder)) if r and "config" in r}


def lines_of(folder):
    """The lines of a results file, which may not be there."""
    file = folder / "results.jsonl"
    return file.read_bytes().splitlines(True) if file.exists() else []


def outcome(record):
    """What two equal runs have in common."""
    return json.dumps([record[name] for name in ("status", "loss", "curve", "corpus")])


class Campaign:
    """What all tries share: a folder, a text and an undisturbed sweep."""

    def __init__(self, folder):
        self.folder, self.text = folder, folder / "text.txt"
        self.text.write_bytes(Path(__file__).read_bytes())
        (folder / "clock").mkdir()
        (folder / "clock/sitecustomize.py").write_text(CLOCK)
        self.environment = os.environ | {
            "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg",
            "PYTHONPATH": str(folder / "clock"), "PYTHONDONTWRITEBYTECODE": "1"}
        self.out = folder / "reference"
        command = self.sweep(self.out, folder / "reference-sweep")
        if command.wait() or len(records_of(self.out)) != 4:
            raise SystemExit(f"the undisturbed sweep fails: {command.said()}")
        self.records, self.table = records_of(self.out), command.said("stdout")
        self.told = dict(zip(TOLD.findall(command.said()), self.records))

    def sweep(self, out, name, *more, data=None, words=SWEEP, **settings):
        """The sweep as a `Command`."""
        named = [*words, "--data", data or self.text, "--out", out, *more]
        settings.setdefault("env", self.environment)
        settings.setdefault("cwd", self.folder)
        return Command([ROOT / "train.py", *named], out, name, **settings)


class Try:
    """One try: a folder, random numbers, the commands. Where quick, no time passes by itself."""

    def __init__(self, campaign, kind, seed, quick=False):
        self.campaign, self.quick, self.rng = campaign, quick, random.Random(f"{kind} {seed}")
        self.folder = Path(tempfile.mkdtemp(prefix=f"{kind}-{seed}-", dir=campaign.folder))
        self.out, self.commands, self.atend = self.folder / "out", [], []
        self.options = {}                          # of the sweep, in every command of the try

    def sweep(self, *more, **settings):
        """Starts the sweep."""
        name = self.folder / str(len(self.commands))
        command = self.campaign.sweep(self.out, name, *more, **(self.options | settings))
        self.commands.append(command)
        return command

    def moment(self, command):
        """Waits for a moment of a sweep: the start, a worker, a checkpoint, a run told of."""
        told = self.rng.randrange(1, 4)
        event = self.rng.choice([
            lambda: True, command.workers, lambda: list(self.out.glob("*.npz")),
            lambda: list(self.out.glob(".*.tmp")),
            lambda: len(TOLD.findall(command.said())) >= told])
        delay = self.rng.choice([0, 0.02, 0.3]) * self.rng.random()
        command.until(event, "such moment")
        if not self.quick:
            time.sleep(delay)

    def kept(self, command):
        """Checks that each run that a command has told of is in the results file, unchanged."""
        whole = command.said().rpartition("\n")[0]     # the last line may be half a one
        for line in TOLD.findall(whole):
            if "loss " in line:
                if line not in self.campaign.told:
                    raise Failed("changed", f"{line!r} was told")
                if self.campaign.told[line] not in records_of(self.out):
                    raise Failed("lost", f"{line!r} was told and is not in the file")

    def check(self, *more):
        """Runs the same command undisturbed and compares with the undisturbed sweep."""
        old = [line for line in lines_of(self.out) if finished(parsed(line))]
        before = {name for name, r in records_of(self.out).items() if finished(r)}
        command = self.sweep(*more)
        status, new = command.wait(), records_of(self.out)
        if status:
            raise Failed("other", f"the same command ends with {status}: {command.said()[-500:]!r}")
        if set(old) - set(lines_of(self.out)):
            raise Failed("lost", "a line of the results file is gone")
        if new.keys() != self.campaign.records.keys():
            raise Failed("lost", f"{self.campaign.records.keys() - new.keys()} not in the file")
        for name, record in self.campaign.records.items():
            if outcome(new[name]) != outcome(record):
                raise Failed("changed", f"{name}: {outcome(new[name])}, not {outcome(record)}")
        if "data" not in self.options and command.said("stdout") != self.campaign.table:
            raise Failed("changed", f"the table is {command.said('stdout')!r}")
        if again := [x for x in TOLD.findall(command.said()) if self.campaign.told[x] in before]:
            raise Failed("other", f"trained twice: {again}")

    def close(self):
        """Ends what is left of the try."""
        for command in self.commands:
            command.kill()
        for action in reversed(self.atend):
            action()
        shutil.rmtree(self.folder, ignore_errors=True)
