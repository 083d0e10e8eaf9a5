"""Checkpoints: the arrays and the progress of a run in one .npz file, without pickle."""
import hashlib
import json
import os
import secrets

import numpy

from ..backend import to_device, to_host


def checksum(arrays):
    """The sha256 of the names, types, shapes and bytes of arrays."""
    h = hashlib.sha256()
    for name in sorted(arrays):
        h.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        h.update(numpy.ascontiguousarray(arrays[name]))
    return h.hexdigest()


def save(path, params, state, progress):
    """Writes a checkpoint, or leaves the file at the path as it was. progress: plain JSON."""
    arrays = {f"params/{name}": to_host(array) for name, array in params.items()}
    arrays |= {f"state/{name}": to_host(array) for name, array in state.items()}
    arrays["progress"] = numpy.frombuffer(json.dumps(progress).encode(), numpy.uint8)
    arrays["checksum"] = numpy.frombuffer(checksum(arrays).encode(), numpy.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:   # x: not through a link that has this name
            numpy.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(path):
    """(params, state, progress) as `save` was given them.

    Errors: ValueError if the file is damaged.
    """
    try:
        with numpy.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        expected = arrays.pop("checksum").tobytes().decode()
        sound = checksum(arrays) == expected
        progress = json.loads(arrays["progress"].tobytes())
    except (MemoryError, PermissionError):
        raise
    except Exception:   # zipfile, numpy and zlib have different errors for a damaged file
        sound = False
    if not sound:
        raise ValueError(f"{path} is damaged: delete it, and the run starts from its beginning")

    def group(prefix):
        return {name.removeprefix(prefix): to_device(array)
                for name, array in arrays.items() if name.startswith(prefix)}
    return group("params/"), group("state/"), progress
