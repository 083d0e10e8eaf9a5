"""One training run: a config in, a record out."""
import math
import platform
import sys
import time
from dataclasses import asdict

import numpy
from tqdm import tqdm

from . import checkpoint, data, ops, optim
from .backend import generator, keep_freed_memory, to_device, to_host, use, xp
from .initialize import initialize
from .network import build

LOGS = 20                # points of a loss curve
HELD_OUT_BATCHES = 16


def versions():
    """What a result may depend on beside the config."""
    return {"python": platform.python_version(), "numpy": numpy.__version__, "arrays": xp.__version__, "machine": platform.machine()}


def diverged(loss, first):
    """Not a number, or far above both the loss of a uniform guess and the loss that training began with."""
    return not (math.isfinite(loss) and loss <= 2 * max(math.log(data.VOCAB), first))


def number(x):
    """x, or None where it is infinite or no number: JSON has neither."""
    return x if math.isfinite(x) else None


def watch_logits(largest):
    """A `watch` that puts each attention's largest logits per head into the dict largest, by block prefix; no second forward."""
    def watch(name, x):
        if name.endswith("attention_logits"):
            largest[name.removesuffix("attention_logits")] = ops.largest_logits(x)
    return watch


def sample(network, params, prompt, length, seq, seed):
    """Continues prompt (bytes) by length bytes drawn from the model; the context is the last seq bytes."""
    text = list(prompt)
    rng = generator(seed, "sample")
    for _ in range(length):
        logits = to_host(network.logits(params, to_device(numpy.array([text[-seq:]]))))[-1].astype(numpy.float64)
        p = numpy.exp(logits - logits.max())
        text.append(int(rng.choice(data.VOCAB, p=p / p.sum())))
    return bytes(text)


def training_step(config, network, params, optimizer, corpus, step):
    """One step: batch, forward, backward, update. Returns the loss and {block prefix: largest attention logit of each head}.

    Nothing in it waits for the device.
    """
    ids, targets = map(to_device, data.training_batch(corpus, config.seed, step, config.batch, config.seq))
    largest = {}
    loss, grads = network.loss_and_gradients(params, ids, targets, watch_logits(largest))
    if config.clip:
        optim.clip(grads, network.rows, config.clip)
    optimizer.step(params, grads, step, optim.schedule(config.schedule, step, config.steps, config.warmup))
    if config.optimizer == "muonclip":
        optim.qk_clip(params, network.rows, largest, config.qk_clip_threshold)
    return loss, largest


def held_out_loss(config, network, params, corpus):
    """Mean loss on the batches that all runs are judged by, nats per byte."""
    batches = data.held_out_batches(corpus, HELD_OUT_BATCHES, config.batch, config.seq)
    return float(to_host(sum(network.loss(params, *map(to_device, b)) for b in batches))) / len(batches)


def log(done, step, losses, peaks):
    """A point of the curve: waits for the device, writes what happened since the last point into done, returns the mean loss."""
    losses = to_host(xp.stack(losses)).astype(float)
    mean, first = float(losses.mean()), done.setdefault("first", float(losses[0]))   # first: the mean may hold a blow-up already
    done["step"] = step
    done["curve"].append([step, number(mean)])
    if peaks:
        heads = to_host(xp.stack(list(peaks.values())))
        done["largest_logits"].append([step, [[number(float(f"{s:.5g}")) for s in block] for block in heads]])
    if diverged(mean, first):
        done["status"] = "diverged"
    return mean


def train(config, corpus, checkpoint_path=None, resume=False, checkpoint_seconds=60.0, final_checkpoint=True, progress=True):
    """Trains the network of a complete config and returns (record, network, params). The record holds plain numbers, strings and lists:

    status "done" or "diverged", loss (held-out, nats per byte, at the end), curve [[step, training loss since the last point]],
    largest_logits [[step, per block and head the largest attention logit since the last point]], seconds, tokens_per_second,
    and what is needed to tell the run from others.

    checkpoint_path: written at a log point when checkpoint_seconds have passed, and at the end if final_checkpoint. With resume, a run goes on
    from it bit for bit.
    """
    use(config.device)
    keep_freed_memory()
    network = build(config)
    params = initialize(network.rows, config.seed, config.dtype)
    optimizer = optim.Optimizer(network.rows, params, config)
    done = {"key": config.key(corpus.digest), "step": 0, "status": "running", "curve": [], "largest_logits": [], "seconds": 0.0}
    if resume and checkpoint_path and checkpoint_path.exists():
        params, optimizer.state, done = checkpoint.load(checkpoint_path)
        if done["key"] != config.key(corpus.digest):
            raise ValueError(f"{checkpoint_path} belongs to another config or corpus: use another --out, or leave --resume away")

    every = max(1, config.steps // LOGS)
    losses, peaks = [], {}
    clock = saved = time.perf_counter()
    speed = lambda: done["step"] * config.batch * config.seq / done["seconds"]
    bar = tqdm(total=config.steps, initial=done["step"], unit="step", leave=False, disable=not (progress and sys.stderr.isatty()))
    with bar, numpy.errstate(all="ignore"):
        while done["status"] == "running" and done["step"] + len(losses) < config.steps:
            step = done["step"] + len(losses)
            loss, largest = training_step(config, network, params, optimizer, corpus, step)
            losses.append(loss)
            peaks = {prefix: xp.maximum(peaks.get(prefix, s), s) for prefix, s in largest.items()}
            bar.update()
            if (step + 1) % every and step + 1 < config.steps:
                continue

            mean = log(done, step + 1, losses, peaks)
            losses, peaks = [], {}
            now = time.perf_counter()
            done["seconds"] += now - clock
            bar.set_postfix_str(f"loss {mean:.3f}, {speed():,.0f} tokens/s")
            if progress and bar.disable:
                print(f"step {step + 1:6d}/{config.steps}   loss {mean:.4f}   {speed():,.0f} tokens/s", file=sys.stderr)
            if checkpoint_path and now - saved > checkpoint_seconds and step + 1 < config.steps:
                checkpoint.save(checkpoint_path, params, optimizer.state, done)
                saved = time.perf_counter()
            clock = time.perf_counter()
        if done["status"] == "running":
            done["loss"] = held_out_loss(config, network, params, corpus)
            done["status"] = "diverged" if diverged(done["loss"], done["first"]) else "done"
    if checkpoint_path and final_checkpoint:
        checkpoint.save(checkpoint_path, params, optimizer.state, done)
    record = {"key": done["key"], "status": done["status"], "loss": done["loss"] if done["status"] == "done" else None,
              "config": asdict(config), "corpus": corpus.digest, "curve": done["curve"], "largest_logits": done["largest_logits"],
              "seconds": done["seconds"], "tokens_per_second": speed(), "versions": versions()}
    return record, network, params
