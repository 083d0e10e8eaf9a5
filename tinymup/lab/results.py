"""The results file: one line of JSON per finished run, which survives any interruption."""
import gc
import json
import math
import os
import re
import zlib

from .config import KEY_VERSION, restored
from .terminal import say, say_once

MARK = b', "sum": "'   # begins the checksum that ends a line
STALE = re.compile(r"\.?[0-9a-f]{12}(\.[0-9a-f]{16})?\.tmp")   # left by a kill during a save


class Results:
    """The results.jsonl of a folder. Only the process that holds its lock appends to it.

    Errors: ValueError if the folder cannot be written, or another process holds the lock.
    """

    def __init__(self, folder):
        self.path = folder / "results.jsonl"
        self.kept = []                           # the lines that this process has appended
        try:
            self.file = self.opened()
            for file in folder.iterdir():
                if STALE.fullmatch(file.name) and file.is_file():
                    file.unlink()
        except OSError as error:
            raise ValueError(f"--out {folder}: {error.strerror}; "
                             "choose a folder that can be written") from None
        self.size = os.fstat(self.file.fileno()).st_size

    def opened(self):
        """The file at the path, locked until we end, however we end."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_fifo():                  # reading would wait for ever
            raise ValueError(f"{self.path} is a pipe: choose another --out")
        file = open(self.path, "ab+", buffering=0)                 # nothing is written at exit
        try:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass                                                   # Windows has no such lock
        except BlockingIOError:
            raise ValueError(f"{self.path} is being written by another sweep: "
                             "wait for it, or choose another --out") from None
        except OSError as error:
            say(f"{self.path} cannot be locked ({error.strerror}): "
                "let no other sweep write to this folder")
        return file

    def read(self):
        """{key: last record, without config}. A run that is only in damaged lines is missing."""
        records, damaged = {}, []
        gc.disable()                             # it would scan all records repeatedly
        try:
            with open(self.path, "rb") as file:
                for i, line in enumerate(file, 1):
                    if record := parsed(line):
                        record.pop("config", None)   # large, and the caller has it by the key
                        records[record["key"]] = record
                    elif line.strip():
                        damaged.append(i)
        finally:
            gc.freeze()
            gc.enable()
        if damaged:
            say_once(f"{self.path}: {len(damaged)} damaged line{'s' * (len(damaged) > 1)}, the "
                     f"first is line {damaged[0]}; a run that only such a line has is repeated")
        return records

    def append(self, record):
        """Adds a line and waits until it is on the disk."""
        line = line_of(record)
        try:
            try:
                self.follow()
            finally:
                self.write(line)                 # into the old file, if there is no other
        except OSError as error:
            raise ValueError(f"{self.path}: {error.strerror}; the runs written so far are kept: "
                             "see to it and run the same command again") from None
        self.kept.append(line)

    def write(self, line):
        """Adds a line on its own, also after one that was cut short."""
        end = self.file.seek(0, os.SEEK_END)
        if end:
            self.file.seek(-1, os.SEEK_END)
            line = b"\n" * (self.file.read(1) != b"\n") + line
        while line:
            line = line[self.file.write(line):]
        os.fsync(self.file.fileno())
        self.size = os.fstat(self.file.fileno()).st_size

    def follow(self):
        """Reopens the file if another program has replaced it, and restores lines that it lost.

        An editor or a synchronisation may have replaced, renamed, deleted or rewritten it. What
        it lacks of the old file and of our lines is written again.
        """
        ours = os.fstat(self.file.fileno())
        same = self.path.exists() and os.path.samestat(ours, os.stat(self.path))
        if same and ours.st_size == self.size:
            return
        say(f"{self.path} was changed by another program while the sweep runs: "
            "the runs that it lacks are written to it again")
        lines = self.kept
        if not same:
            new = self.opened()
            self.file.seek(0)
            lines = [line for line in self.file.readall().splitlines(True) if parsed(line)] + lines
            self.file.close()
            self.file = new
        there = set(self.path.read_bytes().splitlines(True))
        for line in dict.fromkeys(lines):
            if line not in there:
                self.write(line)


def line_of(record):
    """The line of a record; its checksum is that of the same JSON without it."""
    text = json.dumps(record | {"version": KEY_VERSION}).encode()
    return text[:-1] + MARK + b'%08x"}\n' % zlib.crc32(text)


def parsed(line):
    """The record of a line, under its key of today; None if the line is damaged.

    Lines of an older version have neither a checksum nor a version.
    """
    try:
        text, mark, end = line.rstrip(b"\n").rpartition(MARK)
        if mark:
            line = text + b"}"
            if end != b'%08x"}' % zlib.crc32(line):
                return None
        record = json.loads(line)
        if not mark and "version" in record:
            return None
        record["key"] = current_key(record)
        return record if sound(record, mark) else None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return None                              # JSON of another kind


def sound(record, checked):
    """Whether a record's parts have the right form; if checked, only key, status and loss."""
    loss, points, numbers = record["loss"], record.get("curve", []), {int, float, type(None)}
    return (isinstance(record["key"], str)
            and record["status"] in ("done", "diverged", "failed")
            and (type(loss) is float and math.isfinite(loss) if record["status"] == "done"
                 else loss is None)
            and (checked or isinstance(record.get("sample", ""), str)
                 and all(type(step) is int and type(y) in numbers for step, y in points)
                 and {type(record.get(f)) for f in ("seconds", "tokens_per_second")} <= numbers))


def current_key(record):
    """The key of a record. Records of an older version get the key that their config has today."""
    if record.get("version") == KEY_VERSION or "config" not in record:
        return record["key"]
    return restored(record["config"]).key(record["corpus"])


def finished(record):
    """Whether a record is final. A failed run is tried again by the next sweep."""
    return record is not None and record["status"] in ("done", "diverged")
