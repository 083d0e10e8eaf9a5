"""Claim: u-μP is behind μP at default settings because its attention branches start too strong.

    python experiments/umup_factors.py --jobs 2

With 2 blocks, 300 steps and all multipliers at 1, u-μP ends about 0.1 nats above μP. The two differ
in eight numbers, once u-μP's learning rate is divided by 64 (the base width). We take u-μP's
resolved network, give one of these numbers μP's value, tune the lr again, and see how much of the
gap closes. With all eight at once the network is μP, but for rounding and for Adam's ε: this checks
that the list is complete. We also go back, from all eight to all but one.

The claim: attention_out's factor, 3.9 under u-μP and 1 under μP, is the one cause. Given μP's value
alone it closes at least half of the gap, and given u-μP's value alone, in μP, it opens at least
half of it. The rivals are the seven others, above all the readout's init (an eighth of μP's) and
the embedding's lr (8 times μP's at width 64).
Refuted by: a width at which attention_out closes or opens less than half, or another number closes
or opens at least half, too.
"""
import itertools
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

import transfer  # first: it sets the path
from tinymup import optim, ops
from tinymup.lab import data, optimum, run, worker
from tinymup.lab.config import Config, build, complete, settings
from tinymup.lab.plot import BLACK, BLUE, ORANGE, plt, save
from tinymup.lab.results import Results
from tinymup.network import initialize

NAME, WIDTHS, SEEDS = "umup_factors", (64, 128), (0, 1)
LRS = [2.0**e for e in range(-2, 3)]             # μP's are these over BASE, its base width
BASE, CLOSED = 64, 0.5                           # the part of the gap that the claim asks for


def rows(factor, field, chosen):
    """A change of a field of the chosen rows, by a factor that may depend on the row's network."""
    def change(network):
        a = network.architecture
        return network._replace(rows=[
            row._replace(**{field: getattr(row, field) * factor(a)}) if chosen(row) else row
            for row in network.rows])
    return change


def scale(field, value):
    """A change of one of the network's `Scales`, to a value that may depend on the network."""
    def change(network):
        return network._replace(scales=network.scales._replace(**{field: value(network)}))
    return change


def plain_branches(network):
    """x + f(x), the residual branches of μP."""
    return (ops.Branch(1.0, 1.0, 1.0, 1.0),) * len(network.scales.branches)


# What differs, in words (u-μP's against μP's), and the change of u-μP's network to μP's value.
FACTORS = {
    "attention logits": ("1/d, √d₀/d", scale("attention",
                                             lambda n: n.architecture.head_dim**-0.5)),
    "attention_out": ("3.9, 1", scale("attention_out", lambda n: 1.0)),
    "activation": ("1.8, 1", scale("activation", lambda n: 1.0)),
    "residual weights": ("a, b with a² + b² = 1; 1, 1", scale("branches", plain_branches)),
    "embedding lr": ("1/√width, 1/64", rows(lambda a: a.width**0.5 / BASE, "lr",
                                            lambda row: row.role == "embedding")),
    "readout init": ("1, 8", rows(lambda a: BASE**0.5, "std", lambda row: row.role == "output")),
    "lr of branches": ("1/√depth, 1", rows(lambda a: a.depth**0.5, "lr",
                                           lambda row: row.spec.in_branch)),
    "lr of down": ("1/fan_in, 1/width", rows(lambda a: 4, "lr",
                                             lambda row: row.name.endswith("down"))),
}
ONE = [f"+ {name}" for name in FACTORS]          # u-μP with one number of μP's
BACK = [f"all but {name}" for name in FACTORS]
STAGES = [(width, variants) for variants in (["umup", "mup", *ONE], ["all", *BACK])
          for width in WIDTHS]


def network_of(variant, width, lr, seed):
    """(complete config, network) of a variant."""
    if variant == "mup":
        config = complete(Config(param="mup", width=width, lr=lr / BASE, seed=seed))
        return config, build(config)
    config = complete(Config(param="umup", width=width, lr=lr, seed=seed))
    network = build(config)
    for name, (_, change) in FACTORS.items():
        if variant == f"+ {name}" or variant.startswith("all") and variant != f"all but {name}":
            network = change(network)
    return config, network


def measure(variant, width, lr, seed):
    """A record of one run: its held-out loss, None if it diverged."""
    config, network = network_of(variant, width, lr, seed)
    run.keep_freed_memory()
    clock, corpus = time.perf_counter(), data.load(seq=config.seq)
    params = initialize(network.rows, seed, config.dtype)
    optimizer = optim.Optimizer(network.rows, params, settings(config))
    losses = [float(run.training_step(config, network, params, optimizer, corpus, step)[0])
              for step in range(config.steps)]
    loss = run.held_out_loss(config, network, params, corpus)
    gone = run.diverged(loss, losses[0])
    return {"variant": variant, "width": width, "lr": lr, "seed": seed,
            "status": "diverged" if gone else "done", "loss": None if gone else loss,
            "seconds": time.perf_counter() - clock}


def train(jobs):
    """Runs what runs/umup_factors lacks, and writes the CSV."""
    config, digest = complete(Config(param="umup")), data.load().digest
    results = Results(transfer.ROOT / "runs" / NAME)
    todo = {f"{digest} {job}": job for width, variants in STAGES
            for job in itertools.product(variants, [width], LRS, SEEDS)}
    kept = results.read()
    origin = transfer.origin(results.path.parent, not todo.keys() <= kept.keys())
    about = (f"python experiments/{NAME}.py; {origin}; corpus {digest}; numpy "
             f"{run.versions()['numpy']}; {config.steps} steps of adamw, depth {config.depth}, "
             f"head_dim {config.head_dim}, batch {config.batch} x {config.seq}; lr: u-μP's, μP has "
             f"1/{BASE} of it")
    os.environ |= dict.fromkeys(worker.THREADS, "1")       # read by the BLAS of each new process
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(measure, *job): key for key, job in todo.items() if key not in kept}
        for future in as_completed(running):
            results.append({"key": running[future], **future.result()})
    kept = results.read()
    columns = ["variant", "width", "lr", "seed", *transfer.OUTCOME[:2], "seconds"]
    rows = [kept[key] | {"loss": transfer.digits(kept[key]["loss"]),
                         "seconds": f"{kept[key]['seconds']:.1f}"} for key in todo]
    transfer.write(NAME, about, columns, [[row[c] for c in columns] for row in rows])


def curves():
    """{(variant, width): [Point, …]}, from the CSV."""
    losses = {}
    for row in transfer.rows_of(NAME):
        by_lr = losses.setdefault((row["variant"], int(row["width"])), {})
        by_lr.setdefault(float(row["lr"]), {})[int(row["seed"])] = (
            float(row["loss"]) if row["loss"] else None)
    return {key: [optimum.point(lr, by_lr[lr]) for lr in sorted(by_lr)]
            for key, by_lr in losses.items()}


def part(found, variant, width):
    """The part of the gap between u-μP and μP that a variant closes, each at its best lr."""
    own, umup, mup = (transfer.best_point(found[v, width]).loss for v in (variant, "umup", "mup"))
    return (umup - own) / (umup - mup)


def report(found):
    """Losses at the best lr of each variant, the parts closed, and the verdict. ? is an edge."""
    lines = []
    for width in [w for w in WIDTHS if ("mup", w) in found]:
        lines += [f"width {width}: held-out loss at the best lr, mean of "
                  f"{transfer.best_point(found['umup', width]).seeds} seed(s)",
                  f"{'':28}{'loss':>8}{'of seeds':>16}{'log2 lr*':>10}{'gap closed':>12}"]
        for variant in ["umup", *ONE, "mup", "all", *BACK]:
            if (variant, width) in found:
                points = found[variant, width]
                p, at = transfer.best_point(points), optimum.optimum(points)
                lines.append(f"{variant:28}{p.loss:>8.3f}{f'{p.low:.3f} to {p.high:.3f}':>16}"
                             f"{at.log2_lr:>9.2f}{' ' if at.exact else '?'}"
                             f"{100 * part(found, variant, width):>10.0f} %")
        lines.append(f"the eight alone add up to "
                     f"{100 * sum(part(found, v, width) for v in ONE):.0f} %\n")
    return "\n".join([*lines, *verdicts(found)])


def verdicts(found):
    """How far all eight numbers at once are from μP, and a sentence per width on the claim."""
    for width in [w for w in WIDTHS if ("all", w) in found]:
        every, mup = found["all", width], found["mup", width]
        most = max(abs(p.loss - q.loss) for p, q in zip(every, mup) if None not in (p.loss, q.loss))
        best = transfer.best_point(every).loss - transfer.best_point(mup).loss
        yield (f"all eight against μP at width {width}: best losses differ by {abs(best):.4f}, "
               f"those at one lr by at most {most:.4f}")
    for width in [w for w in WIDTHS if ("all", w) in found]:
        parts = {"closed": {name: part(found, f"+ {name}", width) for name in FACTORS},
                 "opened": {name: 1 - part(found, f"all but {name}", width) for name in FACTORS}}
        enough = {done: [name for name in sorted(by_name, key=by_name.get, reverse=True)
                         if by_name[name] >= CLOSED] for done, by_name in parts.items()}
        for done, names in enough.items():
            yield (f"width {width}: at least half of the gap is {done} by "
                   + (", ".join(f"{name} ({100 * parts[done][name]:.0f} %)" for name in names)
                      or "none"))
        alone = all(names == ["attention_out"] for names in enough.values())
        yield f"width {width}: {'not refuted' if alone else 'refuted'}"


def draw(found):
    """A panel per width: a dot and the range of its seeds per number."""
    widths = [w for w in WIDTHS if ("mup", w) in found]
    figure, axes = plt.subplots(1, len(widths), figsize=(1.5 + 4 * len(widths), 4), sharey=True,
                                squeeze=False)
    for ax, width in zip(axes[0], widths):
        for variant, label, colour in (("umup", "u-μP", BLACK), ("mup", "μP", BLUE)):
            p = transfer.best_point(found[variant, width])
            ax.axvspan(p.low, p.high, color=colour, alpha=0.12, linewidth=0)
            ax.axvline(p.loss, color=colour, label=label)
        for variants, marker, fill, label in (
                (ONE, "o", ORANGE, "u-μP with this of μP"),
                (BACK, "D", "white", "μP with this of u-μP")):
            known = [(i, transfer.best_point(found[v, width])) for i, v in enumerate(variants)
                     if (v, width) in found]
            for i, p in known:
                y = i + (0.15 if variants is BACK else -0.15)
                ax.plot([p.low, p.high], [y, y], color="gray", linewidth=1.5)
                ax.plot(p.loss, y, marker, markersize=7, markerfacecolor=fill,
                        markeredgecolor="black", label=label if i == 0 else None, linestyle="")
        ax.set_title(f"width {width}", fontsize=10)
        ax.set_xlabel("held-out loss at the best lr, nats per byte", fontsize=9)
        ax.locator_params(axis="x", nbins=5)
    axes[0][0].set_yticks(range(len(FACTORS)), [f"{name}\n({words})" for name, (words, _)
                                                in FACTORS.items()], fontsize=8)
    axes[0][0].invert_yaxis()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    counts = {p.seeds for points in found.values() for p in points}
    save(figure, transfer.FIGURES / f"{NAME}.png",
         "u-μP and μP exchange one number (in brackets: u-μP's, μP's); mean and range, seeds: "
         f"{' to '.join(map(str, sorted(counts)))}")


if __name__ == "__main__":
    flags = transfer.arguments(__doc__, device=False)
    if not flags.redraw:
        train(flags.jobs)
    found = curves()
    print(report(found))
    draw(found)
