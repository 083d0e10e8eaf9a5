"""What tests of equivalence compare: the logits of a batch through some steps of training."""
import numpy as np

from tinymup import optim
from tinymup.lab import data
from tinymup.lab.config import build, complete, settings
from tinymup.network import initialize

STEPS = 6


def logits_after(config, steps=STEPS):
    """The logits of one batch before each step of training and after the last.

    The clipping of gradients and of attention logits follows the config. The schedule does not: it
    is two steps of warm-up and a linear decay.
    """
    config = complete(config)
    network = build(config)
    params = initialize(network.rows, config.seed, config.dtype)
    optimizer = optim.Optimizer(network.rows, params, settings(config))
    rng = np.random.default_rng(5)
    probe = rng.integers(0, data.VOCAB, (2, 6))
    history = [network.logits(params, probe)]
    for step in range(steps):
        # nine byte values only, so that there is something to learn
        ids, targets = rng.integers(0, 9, (2, config.batch, config.seq))
        largest = {}
        _, grads = network.loss_and_gradients(params, ids, targets, largest=largest)
        if config.clip:
            optim.clip(grads, network.rows, config.clip)
        optimizer.step(params, grads, step, optim.schedule("linear", step, steps, 2))
        if config.optimizer == "muonclip":
            optim.qk_clip(params, network.rows, largest, config.qk_clip_threshold)
        history.append(network.logits(params, probe))
    return np.array(history)


def distance(a, b):
    """The largest difference, in units of the largest element of b."""
    return np.abs(a - b).max() / np.abs(b).max()
