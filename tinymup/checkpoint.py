"""Checkpoints: arrays and progress in one .npz, without pickle, written whole or not at all."""
import hashlib
import json
import os

import numpy

from .backend import to_device, to_host


def checksum(arrays):
    """sha256 over names, types, shapes and bytes."""
    h = hashlib.sha256()
    for name in sorted(arrays):
        h.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        h.update(numpy.ascontiguousarray(arrays[name]))
    return h.hexdigest()


def save(path, params, state, progress):
    """Writes arrays and progress (plain numbers and lists) to an .npz: whole or not at all."""
    arrays = {f"params/{k}": to_host(v) for k, v in params.items()} | {f"state/{k}": to_host(v) for k, v in state.items()}
    arrays["progress"] = numpy.frombuffer(json.dumps(progress).encode(), numpy.uint8)
    arrays["checksum"] = numpy.frombuffer(checksum(arrays).encode(), numpy.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        numpy.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path):
    """(params, state, progress) as `save` was given them.

    Errors: ValueError where the file is damaged.
    """
    try:
        with numpy.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        expected = arrays.pop("checksum").tobytes().decode()
        sound = checksum(arrays) == expected
    except Exception:   # zipfile, numpy and zlib each have errors of their own for a damaged file
        sound = False
    if not sound:
        raise ValueError(f"{path} is damaged: delete it, and the run starts from its beginning")
    group = lambda prefix: {k[len(prefix):]: to_device(v) for k, v in arrays.items() if k.startswith(prefix)}
    return group("params/"), group("state/"), json.loads(arrays["progress"].tobytes())
