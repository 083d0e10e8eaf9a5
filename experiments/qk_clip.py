"""Claim: QK-Clip holds every head's largest attention logit near its threshold, and harms no loss.

    python experiments/qk_clip.py --jobs 2

The rival is Muon alone, which drives the logits far past it at the larger learning rate. Refuted
by: after the warm-up a largest logit above 1.5 times the threshold, or with clipping a divergence
or a held-out loss that is worse by more than the seeds of Muon alone differ.

QK-Clip uses the logits of the batch before, so a batch can still pass the threshold. In the second
rival, "own", each batch is run forward once more beforehand, and its own logits rescale the weights
that it will meet. If that holds the threshold, the delay is the cause of the overshoot. The runs of
"own" are made in this process, on a CPU.

The learning rates are Muon's best, 2^-5, and four times that, where logits run away. What is
recorded is the largest logit of each head, as the softmax saw it, over all batches since the last
log point.
"""
import math
import statistics
from unittest.mock import patch

from transfer import (  # noqa: I001 (first: it sets the path)
    FIGURES, arguments, digits, finished_runs, rows_of, write)

from tinymup import optim
from tinymup.backend import to_device
from tinymup.lab import data, run
from tinymup.lab.config import Config
from tinymup.lab.plot import BLUE, ORANGE, plt, save
from tinymup.lab.sweep import grid

WIDTH, LRS, SEEDS = 128, [2.0**-5, 2.0**-3], [0, 1, 2]
THRESHOLDS = [30.0, 10.0]
WARMUP, NEARLY = 20, 1.5
OWN = " own"      # ends the threshold of runs that are clipped by their own batch
LOOKS = {"none": ("grey", "-"), "30": (BLUE, "--"), "10": (ORANGE, "-")}   # of a threshold
TICKS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


def configs():
    """Muon alone, then MuonClip at each threshold."""
    axes = {"width": [WIDTH], "lr": LRS, "seed": SEEDS}
    return [*grid(Config(optimizer="muon", warmup=WARMUP), axes),
            *grid(Config(optimizer="muonclip", warmup=WARMUP),
                  axes | {"qk_clip_threshold": THRESHOLDS})]


def clipped_first(step_of):
    """`run.training_step`, but first it clips queries and keys by the logits of its own batch."""
    def step(config, network, params, optimizer, corpus, t):
        ids, _ = data.training_batch(corpus, config.seed, t, config.batch, config.seq)
        _, cache = network.model.forward(
            params, to_device(ids), network.architecture, network.scales)
        optim.qk_clip(params, network.rows, network.model.largest_logits(cache),
                      config.qk_clip_threshold)
        return step_of(config, network, params, optimizer, corpus, t)
    return step


def own_batch(configs):
    """The records of MuonClip's configs, clipped before each step by the logits of its batch."""
    corpus = data.load(configs[0].data, configs[0].seq)
    with patch.object(run, "training_step", clipped_first(run.training_step)):
        return [run.train(config, corpus)[0] for config in configs]


def measure(configs, flags):
    """Trains, and writes a row per run and log point: losses, and the largest logit of each head.

    The held-out loss stands in the row of the last step.
    """
    records, about = finished_runs("qk_clip", configs, flags)
    clipped = [config for config in configs if config.optimizer == "muonclip"]
    runs = [(config, record, "") for config, record in zip(configs, records)]
    runs += [(config, record, OWN) for config, record in zip(clipped, own_batch(clipped))]
    first, rows = configs[0], []
    heads = [f"block{b} head{h}" for b in range(first.depth)
             for h in range(first.width // first.head_dim)]
    for config, record, how in runs:
        clips = config.optimizer == "muonclip"
        threshold = f"{config.qk_clip_threshold:g}{how}" if clips else "none"
        for (step, loss), (_, largest) in zip(record["curve"], record["largest_logits"]):
            held_out = record["loss"] if step == config.steps else None
            rows.append([config.lr, threshold, config.seed, step, digits(loss), digits(held_out),
                         *(s for block in largest for s in block)])
    write("qk_clip", f"{about}; width {first.width}, {first.steps} steps; "
                     "heads: the largest attention logit since the last row",
          ["lr", "threshold", "seed", "step", "train_loss", "loss", *heads], rows)


def runs_of(rows):
    """{(lr, threshold): {seed: ([step, …], [[logit of each head], …], held-out loss or None)}}"""
    runs = {}
    for row in rows:
        by_seed = runs.setdefault((float(row["lr"]), row["threshold"]), {})
        steps, logits, _ = by_seed.setdefault(int(row["seed"]), ([], [], None))
        steps.append(int(row["step"]))
        logits.append([float(value or math.inf) for name, value in row.items()   # empty: diverged
                       if name.startswith("block")])
        loss = float(row["loss"]) if row["loss"] else None
        by_seed[int(row["seed"])] = steps, logits, loss
    return runs


def peak(steps, logits):
    """The largest logit of any head after the warm-up, and in the log interval where it ends."""
    return max(max(heads) for step, heads in zip(steps, logits) if step > WARMUP)


def losses_of(by_seed):
    """The held-out losses of the runs that have one."""
    return [loss for _, _, loss in by_seed.values() if loss is not None]


def verdict(threshold, top, losses, plain):
    """Whether clipping did harm and held the logits, against the losses of Muon alone."""
    spread = max(plain) - min(plain)
    change = statistics.mean(losses) - statistics.mean(plain)
    return (f"   loss {change:+.4f}, seeds differ by {spread:.4f}: "
            + ("harmed" if change > spread else "unharmed")
            + ("" if top <= NEARLY * float(threshold.removesuffix(OWN)) else
               f"; NOT held below {NEARLY} times the threshold"))


def report(runs):
    """A row per learning rate and threshold, with the verdict on it."""
    lines = [f"{'lr':>9}{'threshold':>11}{'largest logit':>15}{'at the end':>12}"
             f"{'held-out loss':>15}{'seeds':>20}"]
    for (lr, threshold), by_seed in sorted(runs.items(), key=lambda run: run[0][0]):
        losses, plain = losses_of(by_seed), losses_of(runs[lr, "none"])
        start = f"{lr:>9.5f}{threshold:>11}"
        if len(losses) < len(by_seed):
            harmed = "" if threshold == "none" else ": harmed"
            lines.append(f"{start}   {len(by_seed) - len(losses)} of {len(by_seed)} runs diverged"
                         + harmed)
            continue
        top = max(peak(steps, logits) for steps, logits, _ in by_seed.values())
        end = max(max(logits[-1]) for _, logits, _ in by_seed.values())
        said = "" if threshold == "none" else "   no rival: Muon alone diverged"
        if threshold != "none" and len(plain) == len(runs[lr, "none"]):
            said = verdict(threshold, top, losses, plain)
        lines.append(f"{start}{top:>15.1f}{end:>12.1f}{statistics.mean(losses):>15.4f}"
                     f"{f'{min(losses):.4f} to {max(losses):.4f}':>20}{said}")
    return "\n".join(lines)


def draw(runs):
    """A column per learning rate. The rows differ in the batch whose logits rescale the weights."""
    lrs = sorted({lr for lr, _ in runs})
    figure, axes = plt.subplots(2, len(lrs), figsize=(0.8 + 4.1 * len(lrs), 6.6), sharex=True,
                                sharey=True, squeeze=False)
    for row, how, batch in zip(axes, ("", OWN), ("the batch before", "the batch itself")):
        for ax, lr in zip(row, lrs):
            for (at, threshold), by_seed in runs.items():
                if at == lr and (threshold == "none" or threshold.endswith(OWN) == bool(how)):
                    draw_threshold(ax, threshold.removesuffix(OWN), by_seed)
            ax.set_title(f"lr 2^{math.log2(lr):g}, clipped by the logits of {batch}")
            ax.legend(loc="lower right", fontsize=8)
    axes[0][0].set_yscale("log")
    axes[0][0].set_yticks(TICKS, list(map(str, TICKS)))
    axes[0][0].set_yticks([], minor=True)
    drawn = [s for by_seed in runs.values() for _, logits, _ in by_seed.values()
             for heads in logits for s in heads if s < math.inf]
    axes[0][0].set_ylim(0.3 * min(drawn), 1.25 * max(drawn))     # below the curves: the legends
    for ax in axes[-1]:
        ax.set_xlabel("step")
    figure.supylabel("largest attention logit of a head (log scale)", fontsize=9)
    save(figure, FIGURES / "qk_clip.png",
         f"QK-Clip, width {WIDTH}. Line: the largest of all heads and {len(SEEDS)} seeds; band: "
         "down to the smallest;\ndotted: the threshold; held-out loss in nats per byte: mean of "
         "the seeds")


def draw_threshold(ax, threshold, by_seed):
    """The largest logit of all heads and seeds, a band down to the smallest; the threshold."""
    losses = losses_of(by_seed)
    label = "Muon alone" if threshold == "none" else f"threshold {threshold}"
    label += (f": loss {statistics.mean(losses):.3f}" if len(losses) == len(by_seed)
              else f": {len(by_seed) - len(losses)} of {len(by_seed)} runs diverged")
    color, style = LOOKS.get(threshold, ("black", "-."))
    at_step = [sum(seeds, []) for seeds in zip(*(logits for _, logits, _ in by_seed.values()))]
    largest, smallest = list(map(max, at_step)), list(map(min, at_step))
    steps = by_seed[min(by_seed)][0][:len(at_step)]    # a run that diverged may have fewer
    ax.plot(steps, largest, style, color=color, linewidth=1.5, label=label)
    ax.fill_between(steps, smallest, largest, color=color, alpha=0.2, linewidth=0)
    if threshold != "none":
        ax.axhline(float(threshold), color=color, linestyle=":", linewidth=2)


if __name__ == "__main__":
    flags = arguments(__doc__)
    if not flags.redraw:
        measure(configs(), flags)
    runs = runs_of(rows_of("qk_clip"))
    print(report(runs))
    draw(runs)
