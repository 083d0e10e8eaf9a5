"""Text as bytes: the corpus, its split, and batches that are a function of (seed, step)."""
import glob
import hashlib
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy

from .backend import generator

VOCAB = 256          # a token is a byte
HELD_OUT = 0.1       # the last tenth is never trained on


class Corpus(NamedTuple):
    """Bytes to train on, bytes to judge by, and a name for both."""

    train: numpy.ndarray     # uint8
    held_out: numpy.ndarray  # uint8
    digest: str              # sha256 of all bytes, 12 hex digits


def standard_library():
    """The running interpreter's own .py files, sorted, without tests and site-packages: real text that everyone has."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "site-packages", "dist-packages", "idle_test", "__pycache__"}
    files = (f for f in root.rglob("*.py") if not skipped.intersection(f.relative_to(root).parts))
    return sorted(files, key=lambda f: f.relative_to(root).as_posix())


def find_files(paths):
    """Files, directories (all that is below) and globs, as a sorted list of files without repetition.

    Errors: ValueError where a path matches nothing.
    """
    found = set()
    for path in paths:
        matches = [Path(path)] if Path(path).exists() else [Path(p) for p in glob.glob(path, recursive=True)]
        if not matches:
            raise ValueError(f"--data {path}: no such file, directory or glob; check the path")
        for match in matches:
            found.update(f for f in match.rglob("*") if f.is_file()) if match.is_dir() else found.add(match)
    return sorted(found)


def read_text(file):
    """The bytes of a file.

    Errors: ValueError where it cannot be read, or holds a zero byte: no text does, images and archives do.
    """
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ValueError(f"--data {file}: {error.strerror}; name a file that can be read") from None
    if b"\0" in text:
        raise ValueError(f"--data {file}: not text (byte {text.index(0)} is zero); name text files, or a glob such as 'folder/**/*.txt'")
    return text


def load(paths=(), seq=64):
    """The `Corpus` of the files that paths name, or of the standard library.

    Errors: ValueError where a file cannot be used, or either part is shorter than one window of seq + 1 bytes.
    """
    files = find_files(paths) if paths else standard_library()
    text = numpy.frombuffer(b"".join(read_text(f) for f in files), numpy.uint8)
    split = len(text) - int(len(text) * HELD_OUT)
    if len(text) - split <= seq:
        raise ValueError(f"--data holds {len(text)} bytes in {len(files)} files; --seq {seq} needs {int((seq + 1) / HELD_OUT)} or more, "
                         "for the last tenth is held out: give more data or a smaller --seq")
    return Corpus(text[:split], text[split:], hashlib.sha256(text).hexdigest()[:12])


def windows(text, batch, seq, rng):
    """(inputs, targets), each (batch, seq) int64, at random places of text; a target is the byte after its input."""
    starts = rng.integers(0, len(text) - seq, batch)
    chunk = text[starts[:, None] + numpy.arange(seq + 1)].astype(numpy.int64)
    return chunk[:, :-1], chunk[:, 1:]


def training_batch(corpus, seed, step, batch, seq):
    """The batch of a step: the same for every width, learning rate and parametrization of a seed."""
    return windows(corpus.train, batch, seq, generator(seed, "batch", step))


def held_out_batches(corpus, batches, batch, seq):
    """Batches that all runs of all seeds are judged by."""
    return [windows(corpus.held_out, batch, seq, generator(0, "held-out", i)) for i in range(batches)]
