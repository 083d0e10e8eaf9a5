"""A run as raw numbers, from which a port can start and with which it can compare."""
import json

import numpy

from ..backend import to_device, to_host
from . import data, run
from .resolved import resolved


def write(folder, config, corpus):
    """Trains a complete config and returns its losses. The folder gets, in files of little-endian
    float64, rows first: the initial parameters, the token ids (steps, batch, seq + 1), the losses,
    the gradients of step 0 before clipping, and the parameters after the last step.

    index.json has the resolved run, and for each file {name: {"offset": in bytes, "shape": …}}.
    """
    run_of_it = resolved(config)
    folder.mkdir(parents=True, exist_ok=True)
    network, params, optimizer, _ = run.start(config, corpus, None)
    index = {"resolved": run_of_it, "files": {"initial.f64": put(folder / "initial.f64", params)}}
    losses, ids = [], []
    with numpy.errstate(all="ignore"):
        for step in range(config.steps):
            inputs, targets = data.training_batch(corpus, config.seed, step, config.batch,
                                                  config.seq)
            ids.append(numpy.concatenate([inputs, targets[:, -1:]], axis=1))
            largest = {}
            loss, grads = network.loss_and_gradients(
                params, to_device(inputs), to_device(targets), largest=largest)
            losses.append(float(to_host(loss)))
            if step == 0:
                index["files"]["gradients.f64"] = put(folder / "gradients.f64", grads)
            run.update(config, network, params, optimizer, grads, largest, step)
    for name, arrays in {"final": params, "ids": {"ids": numpy.array(ids)},
                         "losses": {"losses": numpy.array(losses)}}.items():
        index["files"][f"{name}.f64"] = put(folder / f"{name}.f64", arrays)
    (folder / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return losses


def put(path, arrays):
    """Writes arrays one after the other. Returns where each stands."""
    places, offset = {}, 0
    with open(path, "wb") as file:
        for name, array in arrays.items():
            array = numpy.ascontiguousarray(to_host(array), "<f8")
            file.write(array)
            places[name] = {"offset": offset, "shape": list(array.shape)}
            offset += array.nbytes
    return places
