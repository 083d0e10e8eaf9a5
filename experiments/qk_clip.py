"""Claim: QK-Clip holds every head's largest attention logit near its threshold where Muon alone drives it far past, and no loss is lost.

    python experiments/qk_clip.py --jobs 2

Refuted by: after the warm-up a largest logit above 1.5 times the threshold (γ comes from the batch before, so it is met only nearly),
or a held-out loss with clipping that is worse than without by more than the seeds differ.

Two learning rates: Muon's best, 2^-5, and four times that, where logits really run away. The recorded number is the largest logit of a
head, as the softmax saw it, over all batches since the last log point.
"""
import csv
import statistics

from transfer import FIGURES, RESULTS, ROOT, arguments, commit  # noqa: I001 (first: it sets the path)

from tinymup import data, run, sweep
from tinymup.network import Config

WIDTH, LRS, SEEDS = 128, [2.0**-5, 2.0**-3], [0, 1, 2]
THRESHOLDS = [30.0, 10.0]
WARMUP, NEARLY = 20, 1.5
RESULT, FIGURE = RESULTS / "qk_clip.csv", FIGURES / "qk_clip.png"
COLOURS = {"none": "#888888", "30": "#4477aa", "10": "#ee6677"}


def measure(jobs):
    """Trains, and writes a row per run and log point: the training loss, at the last the held-out one, and the largest logit of each head."""
    axes = {"width": [WIDTH], "lr": LRS, "seed": SEEDS}
    configs = sweep.grid(Config(optimizer="muon", warmup=WARMUP), axes)
    configs += sweep.grid(Config(optimizer="muonclip", warmup=WARMUP), axes | {"qk_clip_threshold": THRESHOLDS})
    corpus = data.load(configs[0].data, configs[0].seq)
    records = sweep.run_all(configs, corpus, sweep.Results(ROOT / "runs/qk_clip"), jobs)
    heads = [f"block{b} head{h}" for b in range(configs[0].depth) for h in range(WIDTH // configs[0].head_dim)]
    with open(RESULT, "w") as file:
        file.write(f"# python experiments/qk_clip.py; commit {commit()}; corpus {corpus.digest}; numpy {run.versions()['numpy']}; width {WIDTH}, "
                   f"{configs[0].steps} steps; heads: the largest attention logit since the last row\n")
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["lr", "threshold", "seed", "step", "train_loss", "loss", *heads])
        for record in records:
            c = record["config"]
            threshold = f"{c['qk_clip_threshold']:g}" if c["optimizer"] == "muonclip" else "none"
            for (step, loss), (_, largest) in zip(record.get("curve", []), record.get("largest_logits", [])):
                last = step == c["steps"] and record["loss"] is not None
                table.writerow([c["lr"], threshold, c["seed"], step, f"{loss:.5f}", f"{record['loss']:.5f}" if last else "",
                                *(s for block in largest for s in block)])


def read():
    """{(lr, threshold): {seed: ([step, …], [[logit of each head], …], held-out loss or None)}}"""
    runs = {}
    with open(RESULT) as file:
        next(file)
        for row in csv.DictReader(file):
            by_seed = runs.setdefault((float(row["lr"]), row["threshold"]), {})
            steps, logits, _ = by_seed.setdefault(int(row["seed"]), ([], [], None))
            steps.append(int(row["step"]))
            logits.append([float(value) for name, value in row.items() if name.startswith("block")])
            by_seed[int(row["seed"])] = steps, logits, float(row["loss"]) if row["loss"] else None
    return runs


def peak(steps, logits):
    """The largest logit of any head after the warm-up."""
    return max(max(heads) for step, heads in zip(steps, logits) if step > WARMUP)


def report(runs):
    lines = [f"{'lr':>9}{'threshold':>11}{'largest logit':>15}{'held-out loss':>15}{'seeds':>20}"]
    for (lr, threshold), by_seed in sorted(runs.items(), key=lambda run: run[0][0]):
        losses = [loss for _, _, loss in by_seed.values() if loss is not None]
        plain = [loss for _, _, loss in runs[lr, "none"].values() if loss is not None]
        if len(losses) < len(by_seed) or len(plain) < len(by_seed):
            lines.append(f"{lr:>9.5f}{threshold:>11}   {len(by_seed) - len(losses)} of {len(by_seed)} runs diverged")
            continue
        top, verdict = max(peak(steps, logits) for steps, logits, _ in by_seed.values()), ""
        if threshold != "none":
            spread = max(max(plain) - min(plain), max(losses) - min(losses))
            change = statistics.mean(losses) - statistics.mean(plain)
            verdict = f"   loss {change:+.4f}, seeds differ by {spread:.4f}: " + ("harmed" if change > spread else "unharmed")
            verdict += "" if top <= NEARLY * float(threshold) else f"; NOT held below {NEARLY} times the threshold"
        lines.append(f"{lr:>9.5f}{threshold:>11}{top:>15.1f}{statistics.mean(losses):>15.4f}{f'{min(losses):.4f} to {max(losses):.4f}':>20}{verdict}")
    return "\n".join(lines)


def draw(runs):
    import math

    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lrs = sorted({lr for lr, _ in runs})
    figure, axes = plt.subplots(1, len(lrs), figsize=(0.6 + 4.4 * len(lrs), 4), sharey=True, squeeze=False, layout="constrained")
    for ax, lr in zip(axes[0], lrs):
        for (_, threshold), by_seed in ((key, value) for key, value in runs.items() if key[0] == lr):
            losses = [loss for _, _, loss in by_seed.values() if loss is not None]
            steps, logits, _ = by_seed[min(by_seed)]
            name = "Muon alone" if threshold == "none" else f"threshold {threshold}"
            for i, head in enumerate(zip(*logits)):
                ax.plot(steps, head, color=COLOURS.get(threshold), linewidth=1,
                        label=f"{name}: loss {statistics.mean(losses):.3f}" if losses and not i else None)
            if threshold != "none":
                ax.axhline(float(threshold), color=COLOURS.get(threshold), linestyle=":", linewidth=1)
        ax.set_yscale("log")
        ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
        ax.set_yticks(ticks, list(map(str, ticks)))
        ax.set_yticks([], minor=True)
        ax.set(title=f"lr 2^{math.log2(lr):g}", xlabel="step")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    drawn = [s for by_seed in runs.values() for heads in by_seed[min(by_seed)][1] for s in heads]
    axes[0][0].set_ylim(max(1, 0.8 * min(drawn)), 1.25 * max(drawn))
    axes[0][0].set_ylabel("largest attention logit of a head")
    figure.suptitle(f"QK-Clip, width {WIDTH}: a line per head of one seed; held-out loss: mean of {len(SEEDS)} seeds", fontsize=11)
    figure.savefig(FIGURE, dpi=100)


if __name__ == "__main__":
    flags = arguments(__doc__)
    if not flags.redraw:
        measure(flags.jobs)
    runs = read()
    print(report(runs))
    draw(runs)
