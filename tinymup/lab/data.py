"""The corpus: text as bytes, split into training and held-out part, and the batches from it."""
import glob
import hashlib
import math
import os
import stat
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy

from ..backend import generator

VOCAB = 256          # a token is a byte
HELD_OUT = 0.1       # the last tenth of the corpus is for evaluation only


class Corpus(NamedTuple):
    """Bytes for training and for evaluation."""

    train: numpy.ndarray     # uint8
    held_out: numpy.ndarray  # uint8
    digest: str              # 12 hex digits of the sha256 of all bytes


def standard_library():
    """The .py files of this Python's standard library, without tests: text that everyone has."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "site-packages", "dist-packages", "idle_test", "__pycache__"}
    files = (f for f in root.rglob("*.py") if not skipped.intersection(f.relative_to(root).parts))
    return sorted(files, key=lambda f: f.relative_to(root).as_posix())


def folders(top, hidden=True):
    """Yields (folder, names of its files) for top and all folders below it, each once.

    Links are followed. Without hidden, folders whose names begin with a dot are left out.
    Errors: ValueError for a folder that cannot be read.
    """
    def refuse(error):
        raise ValueError(f"--data {error.filename}: {error.strerror}; name what can be read")
    todo, seen = [top], set()
    for start in todo:                     # links are walked last: a folder keeps its own path
        for folder, inside, files in os.walk(start, onerror=refuse):
            if os.path.realpath(folder) in seen:
                inside.clear()
                continue
            seen.add(os.path.realpath(folder))
            inside[:] = [name for name in inside if hidden or not name.startswith(".")]
            links = (os.path.join(folder, name) for name in inside)
            todo += sorted(filter(os.path.islink, links))
            yield folder, files


def matches(pattern):
    """The paths that a glob matches. Unlike Python's, ** enters each folder once, even by links."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return glob.glob(pattern)
    i = parts.index("**")
    tops = glob.glob(os.path.join(*parts[:i], "")) if i else ["."]
    if i + 1 == len(parts):                                # the folder a, hidden files included
        return tops
    return [match for top in tops for folder, _ in folders(top, hidden=False)
            for match in matches(os.path.join(glob.escape(folder), *parts[i + 1:]))]


def find_files(paths):
    """The files that paths name, sorted, each once. A path is a file, a folder or a glob.

    Errors: ValueError if a path matches nothing or a folder cannot be read.
    """
    found = set()
    for path in paths:
        named = [path] if Path(path).exists() else matches(path)
        if not named:
            raise ValueError(f"--data {path}: no such file, directory or glob; check the path")
        for match in named:
            if Path(match).is_dir():
                found.update(Path(folder, name) for folder, names in folders(match)
                             for name in names)
            else:
                found.add(Path(match))
    once = {os.path.realpath(file): file for file in sorted(found, reverse=True)}
    return sorted(once.values())


def read_text(file):
    """The bytes of a text file. Errors: ValueError if it cannot be read or is no text."""
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode):                # a pipe might never end
            raise ValueError(f"--data {file}: a device, pipe or socket; name regular files")
        if about.st_size > machine_memory():
            raise ValueError(f"--data {file}: {about.st_size:,} bytes, more than this machine's "
                             "memory; name less text")
        text = file.read_bytes()
    except OSError as error:
        raise ValueError(
            f"--data {file}: {error.strerror}; name a file that can be read") from None
    if b"\0" in text:
        raise ValueError(f"--data {file}: not text (byte {text.index(0)} is zero); "
                         "name text files, or a glob such as 'folder/**/*.txt'")
    return text


def machine_memory():
    """This machine's memory in bytes; infinite if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def load(paths=(), seq=64):
    """The `Corpus` of the files that paths name, or of the standard library if there are none.

    Errors: ValueError if a file cannot be used, or the held-out part is shorter than seq + 1 bytes.
    """
    files = find_files(paths) if paths else standard_library()
    text = b"".join(read_text(f) for f in files)
    held_out = int(len(text) * HELD_OUT)
    if held_out <= seq:
        raise ValueError(f"--data holds {len(text)} bytes in {len(files)} files; --seq {seq} needs "
                         f"{int((seq + 1) / HELD_OUT)} or more, since the last tenth is held out: "
                         "give more data or a smaller --seq")
    return split(text, len(text) - held_out)


def split(text, at):
    """The `Corpus` of a text as bytes, of which the first `at` are for training."""
    text = numpy.frombuffer(text, numpy.uint8)
    return Corpus(text[:at], text[at:], hashlib.sha256(text).hexdigest()[:12])


def windows(text, batch, seq, rng):
    """(inputs, targets) at random places, (batch, seq) int64. Targets are one byte later."""
    starts = rng.integers(0, len(text) - seq, batch)
    chunk = text[starts[:, None] + numpy.arange(seq + 1)].astype(numpy.int64)
    return chunk[:, :-1], chunk[:, 1:]


def training_batch(corpus, seed, step, batch, seq):
    """The (inputs, targets) of a training step, the same in all runs of one seed."""
    return windows(corpus.train, batch, seq, generator(seed, "batch", step))


def held_out_batches(corpus, batches, batch, seq):
    """The list of (inputs, targets) for evaluation, the same for all seeds."""
    return [windows(corpus.held_out, batch, seq, generator(0, "held-out", i))
            for i in range(batches)]
