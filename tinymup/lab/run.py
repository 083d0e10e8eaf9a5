"""One training run: a config in, a record out."""
import ctypes
import math
import platform
import sys
import time

import numpy
import numpy.random  # noqa: F401 (numpy itself loads it late, when memory may be short)
from tqdm import tqdm

from .. import optim
from ..backend import generator, to_device, to_host, use, xp
from ..network import initialize
from . import checkpoint, data
from .config import build, record_of, same_program, settings
from .terminal import say, say_once, watched

LOGS = 20                # points of a loss curve
HELD_OUT_BATCHES = 16
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3   # from glibc's malloc.h


def keep_freed_memory():
    """Makes glibc keep freed memory for the next array instead of returning it to the system.

    Each step allocates the same arrays as the one before, and fresh pages are slow to touch. With
    another C library this does nothing. CuPy's memory pool does the same by itself.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
        libc.mallopt(M_TOP_PAD, 1 << 26)


def versions():
    """What a result may depend on besides the config and the corpus."""
    return {"python": platform.python_version(), "numpy": numpy.__version__,
            "arrays": xp.__version__, "machine": platform.machine()}


def diverged(loss, first):
    """Whether a loss is not finite, or above 2 · max(first, loss of a uniform guess)."""
    return not (math.isfinite(loss) and loss <= 2 * max(math.log(data.VOCAB), first))


def finite(x):
    """x, or None if it is infinite or NaN, which JSON cannot express."""
    return x if math.isfinite(x) else None


def sample(network, params, prompt, length, seq, seed):
    """The prompt (bytes) and length more bytes, each drawn by the model from the last seq bytes."""
    text = list(prompt)
    rng = generator(seed, "sample")
    for _ in range(length):
        logits = to_host(network.logits(params, to_device(numpy.array([text[-seq:]]))))[-1]
        p = numpy.exp(logits.astype(numpy.float64) - logits.max())
        text.append(int(rng.choice(len(p), p=p / p.sum())))
    return bytes(text)


def training_step(config, network, params, optimizer, corpus, step):
    """Trains on the batch of a step. Updates params in place and does not wait for the device.

    Returns the loss and {name of the attention logits: the largest of each head}.
    """
    batch = data.training_batch(corpus, config.seed, step, config.batch, config.seq)
    ids, targets = map(to_device, batch)
    largest = {}
    loss, grads = network.loss_and_gradients(params, ids, targets, largest=largest)
    update(config, network, params, optimizer, grads, largest, step)
    return loss, largest


def update(config, network, params, optimizer, grads, largest, step):
    """Clips gradients, takes a step of the optimizer, and clips queries and keys for MuonClip."""
    if config.clip:
        optim.clip(grads, network.rows, config.clip)
    factor = optim.schedule(config.schedule, step, config.steps, config.warmup)
    optimizer.step(params, grads, step, factor)
    if config.optimizer == "muonclip":
        optim.qk_clip(params, network.rows, largest, config.qk_clip_threshold)


def held_out_loss(config, network, params, corpus):
    """The mean loss on the held-out batches, in nats per byte."""
    batches = data.held_out_batches(corpus, HELD_OUT_BATCHES, config.batch, config.seq)
    total = sum(network.loss(params, *map(to_device, batch)) for batch in batches)
    return float(to_host(total)) / len(batches)


def log(progress, step, losses, peaks):
    """Adds a point to the curves in progress and returns its mean loss. Waits for the device."""
    losses = to_host(xp.stack(losses)).astype(float)
    mean = float(losses.mean())
    first = progress.setdefault("first", float(losses[0]))   # not the mean: it may have diverged
    progress["step"] = step
    progress["curve"].append([step, finite(mean)])
    if peaks:
        heads = to_host(xp.stack(list(peaks.values())))
        progress["largest_logits"].append(
            [step, [[finite(float(f"{s:.5g}")) for s in block] for block in heads]])
    if diverged(mean, first):
        progress["status"] = "diverged"
    return mean


def record(config, corpus, progress):
    """What the results file holds of a run, as plain JSON."""
    status = progress["status"]
    return {"key": progress["key"], "program": same_program(config).key(corpus.digest),
            "status": status, "loss": progress["loss"] if status == "done" else None,
            "config": record_of(config), "corpus": corpus.digest, "curve": progress["curve"],
            "largest_logits": progress["largest_logits"], "seconds": progress["seconds"],
            "tokens_per_second": speed(config, progress), "versions": versions()}


def speed(config, progress):
    """Tokens per second so far."""
    return progress["step"] * config.batch * config.seq / progress["seconds"]


def start(config, corpus, checkpoint_path):
    """(network, params, optimizer, progress) of a new run, or of one that its checkpoint continues.

    Errors: those of `loaded`.
    """
    use(config.device)
    keep_freed_memory()
    network = build(config)
    params = initialize(network.rows, config.seed, config.dtype)
    optimizer = optim.Optimizer(network.rows, params, settings(config))
    key = config.key(corpus.digest)
    progress = {"key": key, "step": 0, "status": "running", "curve": [], "largest_logits": [],
                "seconds": 0.0}
    if checkpoint_path and checkpoint_path.exists():
        params, optimizer.state, progress = loaded(checkpoint_path, key, params, optimizer.state)
    return network, params, optimizer, progress


def loaded(path, key, params, state):
    """(params, state, progress) of a checkpoint. params and state are those of a new run.

    Errors: ValueError if it is damaged, of another run, or has other arrays or strange progress.
    """
    def form(arrays):
        return {name: (array.shape, array.dtype) for name, array in arrays.items()}
    *arrays, progress = checkpoint.load(path)
    if not isinstance(progress, dict) or progress.get("key") != key:
        raise ValueError(f"{path} belongs to another config or corpus: "
                         "use another --out, or run without --resume")
    if list(map(form, arrays)) != [form(params), form(state)] or not plausible(progress):
        raise ValueError(f"{path} does not hold the arrays and numbers of this run: "
                         "delete it, and the run starts from its beginning")
    return *arrays, progress


def plausible(progress):
    """Whether a run can have written this progress."""
    status, step, seconds = map(progress.get, ("status", "step", "seconds"))
    numbers = [step, seconds, progress.get("first"), *[progress.get("loss")] * (status == "done")]
    curves = [progress.get("curve"), progress.get("largest_logits")]
    return (status in ("running", "diverged", "done")
            and all(type(x) in (int, float) for x in numbers)
            and type(step) is int and step > 0 and seconds > 0
            and all(isinstance(curve, list) for curve in curves)
            and all(isinstance(point, list) and len(point) == 2
                    for curve in curves for point in curve))


def save(path, params, state, progress):
    """Writes a checkpoint, or warns once that it cannot be written: the run goes on."""
    try:
        checkpoint.save(path, params, state, progress)
    except OSError as error:
        say_once(f"warning: no checkpoint can be written: {path}: {error.strerror}")


def train(config, corpus, checkpoint_path=None, resume=False, checkpoint_seconds=60.0,
          final_checkpoint=True, shown=True):
    """Trains the network of a complete config and returns (record, network, params).

    The record is plain JSON. Its status is "done" or "diverged", its loss the held-out one in nats
    per byte. Its curve has points [step, mean training loss since the last point], and
    largest_logits has [step, the largest attention logit of each block and head since then].

    A checkpoint is written at the first point of the curve after each checkpoint_seconds, and at
    the end if final_checkpoint. With resume, a run continues from it bit for bit.
    """
    network, params, optimizer, progress = start(config, corpus, resume and checkpoint_path)
    every = max(1, config.steps // LOGS)
    losses, peaks = [], {}
    clock = saved = time.perf_counter()
    bar = tqdm(total=config.steps, initial=progress["step"], unit="step", leave=False,
               disable=not (shown and watched()))
    with bar, numpy.errstate(all="ignore"):
        for step in range(progress["step"], config.steps):
            if progress["status"] != "running":
                break
            loss, largest = training_step(config, network, params, optimizer, corpus, step)
            losses.append(loss)
            peaks = {name: xp.maximum(peaks.get(name, s), s) for name, s in largest.items()}
            bar.update()
            last = step + 1 == config.steps
            if (step + 1) % every and not last:
                continue
            mean = log(progress, step + 1, losses, peaks)
            losses, peaks = [], {}
            now = time.perf_counter()
            progress["seconds"] += now - clock
            text = f"loss {mean:.4f}   {speed(config, progress):,.0f} tokens/s"
            bar.set_postfix_str(text)
            if shown and not watched():
                say(f"step {step + 1:6d}/{config.steps}   {text}")
            if checkpoint_path and now - saved > checkpoint_seconds and not last:
                save(checkpoint_path, params, optimizer.state, progress)
                saved = time.perf_counter()
            clock = time.perf_counter()
        if progress["status"] == "running":
            loss = progress["loss"] = held_out_loss(config, network, params, corpus)
            progress["status"] = "diverged" if diverged(loss, progress["first"]) else "done"
    if checkpoint_path and final_checkpoint:
        save(checkpoint_path, params, optimizer.state, progress)
    return record(config, corpus, progress), network, params
