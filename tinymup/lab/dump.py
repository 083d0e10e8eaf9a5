"""Writes the numbers of a run, for a port to start from and to compare with: `--dump FOLDER`."""
import json

import numpy

from ..backend import to_device, to_host
from . import data, run
from .resolved import resolved


def write(folder, config, corpus):
    """Trains a complete config, writes its numbers to a folder, and returns its losses.

    One file each holds the initial parameters, the gradients of step 0 before clipping, the
    parameters after the last step, the token ids (steps, batch, seq + 1) and the losses. A file is
    its arrays one after the other, row by row, as little-endian float64. index.json has the
    resolved run, and for each file {name of the array: {"offset": in bytes, "shape": …}}.
    """
    index = {"resolved": resolved(config), "files": {}}
    folder.mkdir(parents=True, exist_ok=True)

    def put(name, arrays):
        places = index["files"][name] = {}
        with open(folder / name, "wb") as file:
            for key, array in arrays.items():
                array = numpy.ascontiguousarray(to_host(array), "<f8")
                places[key] = {"offset": file.tell(), "shape": list(array.shape)}
                file.write(array)

    network, params, optimizer, _ = run.start(config, corpus, None)
    put("initial.f64", params)
    batches = [data.training_batch(corpus, config.seed, step, config.batch, config.seq)
               for step in range(config.steps)]
    with numpy.errstate(all="ignore"):
        put("gradients.f64", network.loss_and_gradients(params, *map(to_device, batches[0]))[1])
        losses = [run.training_step(config, network, params, optimizer, corpus, step)[0]
                  for step in range(config.steps)]
    losses = [float(to_host(loss)) for loss in losses]
    ids = [numpy.concatenate([ids, targets[:, -1:]], axis=1) for ids, targets in batches]
    put("final.f64", params)
    put("ids.f64", {"ids": numpy.array(ids)})
    put("losses.f64", {"losses": numpy.array(losses)})
    (folder / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return losses
