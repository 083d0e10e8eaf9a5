"""What benchmark.py measures of tinymup: its training step, the products in it, and its memory."""
import contextlib
import functools
import gc
import math
import statistics
import time
import tracemalloc
from unittest.mock import patch

import numpy

from tinymup import backend, ops, optim, orthogonalize
from tinymup.backend import to_device, xp
from tinymup.lab import data
from tinymup.lab.config import build, settings
from tinymup.network import initialize


class Tinymup:
    """The training step that lab/run.py takes, with the interface of the rivals."""

    name = family = "tinymup"

    def __init__(self, config):
        self.network = build(config)
        self.params = initialize(self.network.rows, config.seed, config.dtype)
        self.optimizer = optim.Optimizer(self.network.rows, self.params, settings(config))

    def batch(self, ids, targets):
        """A batch of NumPy arrays as the step takes it."""
        return to_device(ids), to_device(targets)

    def step(self, t, batch):
        """The loss, on the device, after which the parameters are updated."""
        loss, grads = self.network.loss_and_gradients(self.params, *batch)
        self.optimizer.step(self.params, grads, t)
        return loss

    def product(self, a, b):
        """A function that computes a @ b and returns it."""
        a, b = to_device(a), to_device(b)
        return functools.partial(xp.matmul, a, b, out=xp.matmul(a, b))

    def wait(self, x):
        """Returns when x is computed."""
        if xp.module is not numpy:
            xp.cuda.get_current_stream().synchronize()

    @staticmethod
    def release():
        """Gives the memory in CuPy's pools back to the device."""
        if xp.module is not numpy:
            xp.get_default_memory_pool().free_all_blocks()
            xp.get_default_pinned_memory_pool().free_all_blocks()


def release(kinds):
    """Frees what the trainers of these classes have used. No variable may hold a trainer any more.

    Without this, CuPy's pool still has the blocks of one width when the next is measured.
    """
    for kind in kinds:
        gc.collect()
        kind.release()


class Recorder(numpy.ndarray):
    """An array that notes the shapes of its products. What is computed from it does so too."""

    products = []

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        if ufunc is numpy.matmul:
            self.products.append(tuple(x.shape for x in inputs))
        if out:
            kwargs["out"] = tuple(map(plain, out))
        result = getattr(ufunc, method)(*map(plain, inputs), **kwargs)
        if out:
            return out[0]
        return result.view(Recorder) if isinstance(result, numpy.ndarray) else result


def plain(x):
    """A `Recorder` as an ordinary array, on the same memory."""
    return x.view(numpy.ndarray) if isinstance(x, Recorder) else x


class RecordingNumpy:
    """NumPy, except that new arrays, such as those of `empty`, are Recorders too."""

    module = numpy

    def __getattr__(self, name):
        value = getattr(numpy, name)
        if isinstance(value, (numpy.ufunc, type)) or not callable(value):
            return value

        def call(*args, **kwargs):
            result = value(*args, **kwargs)
            return result.view(Recorder) if isinstance(result, numpy.ndarray) else result
        return call


def recorded_products(config, batch):
    """(shape of a, shape of b) of every product a @ b of one step, in order.

    It runs on the CPU, since CuPy has no such arrays. Being watched must not change the step.
    """
    device = xp.module
    backend.use("cpu")
    watched, unwatched = Tinymup(config), Tinymup(config)
    watched.params = {name: w.view(Recorder) for name, w in watched.params.items()}
    loss = unwatched.step(0, batch)              # first: it fills the caches with ordinary arrays
    Recorder.products.clear()
    with contextlib.ExitStack() as stack:
        for module in (ops, optim, orthogonalize):
            stack.enter_context(patch.object(module, "xp", RecordingNumpy()))
        assert watched.step(0, batch) == loss, "watching changed the loss"
    for name, w in unwatched.params.items():
        numpy.testing.assert_array_equal(w, plain(watched.params[name]))
    xp.module = device
    products = list(Recorder.products)
    if config.optimizer != "muon":               # whose products depend on how it stacks matrices
        counted, expected = flops(products), model_flops(unwatched.network, *batch[0].shape)
        assert counted == expected, f"{counted} operations recorded, {expected} expected"
    return products


def model_flops(network, batch, seq):
    """Operations in the products of both passes, by formula.

    A matrix needs three products, the embedding one, and attention six per head: s, y and their
    two gradients each.
    """
    a, rows = network.architecture, batch * seq
    matrices = sum((1 if row.spec.lookups else 3) * 2 * rows * math.prod(row.shape)
                   for row in network.rows)
    return matrices + a.depth * 6 * 2 * batch * a.width * seq**2


def without_lookup(products, config):
    """The products of a step that adds the embedding's gradient up row by row."""
    rows = config.batch * config.seq
    lookup = (data.VOCAB, rows), (rows, config.width)
    *_, last = (i for i, shapes in enumerate(products) if shapes == lookup)
    return products[:last] + products[last + 1:]


def run_alone(library, products, dtype):
    """A function that computes all products with the library's matrix product, and waits.

    Equal shapes share their arrays, so these are in the cache more often than in a step.
    """
    rng = numpy.random.default_rng(0)
    ready = {shapes: library.product(*(rng.standard_normal(s).astype(dtype) for s in shapes))
             for shapes in dict.fromkeys(products)}

    def run():
        for shapes in products:
            last = ready[shapes]()
        library.wait(last)
    return run


def flops(products):
    """Floating-point operations of the products: a multiplication and an addition per term."""
    return sum(2 * math.prod(a) * b[-1] for a, b in products)


def one_step(library, batch):
    """A function that takes a step on a batch, and waits."""
    here = library.batch(*batch)
    return lambda: library.wait(library.step(3, here))


def in_turns(work, repeats):
    """{name: median seconds} of functions called in turns. The first turn warms up."""
    seconds = {name: [] for name in work}
    for _ in range(repeats + 1):
        for name, function in work.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def least_memory(network, batch, seq, itemsize=4):
    """Bytes that an AdamW step of the GELU Transformer needs if it computes nothing twice.

    Without gains and biases. From the forward to the backward pass it keeps both inputs of every
    product and what it needs for the derivative of every other function, unless that is among them.
    In numbers, with N = batch · seq rows:
        a block: the outputs of two norms 2 N C and their 1/rms 2 N; q, k, v and attention's output
            4 N C; GELU's input and output 8 N C; attention's probabilities batch · heads · seq²
        the end: the norm's output N C and 1/rms N; the softmax N V
    Parameters and two moments are always there. Gradients appear while activations are let go, so
    most is needed when the backward pass begins (all activations) or ends (all gradients).
    """
    a, rows = network.architecture, batch * seq
    block = 14 * rows * a.width + 2 * rows + batch * (a.width // a.head_dim) * seq**2
    activations = a.depth * block + rows * a.width + rows + rows * a.vocab
    parameters = sum(math.prod(row.shape) for row in network.rows)
    return itemsize * (3 * parameters + max(parameters, activations))


def peak_memory(config, batch):
    """Bytes in use at most during the second step, parameters and moments included.

    On a GPU: what the pool has taken from the device since it was emptied.
    """
    release([Tinymup])
    tracemalloc.start()
    ours = Tinymup(config)
    here = ours.batch(*batch)
    ours.step(0, here)
    tracemalloc.reset_peak()
    ours.step(1, here)
    peak = tracemalloc.get_traced_memory()[1]             # NumPy reports its arrays to tracemalloc
    tracemalloc.stop()
    return peak if xp.module is numpy else xp.get_default_memory_pool().total_bytes()


def losses(library, batches):
    """The losses of the first steps."""
    return [float(library.step(t, library.batch(*batch))) for t, batch in enumerate(batches)]
