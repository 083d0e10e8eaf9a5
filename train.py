"""Trains a network, or sweeps over widths and learning rates: `python train.py --help`."""
from tinymup.lab import terminal

if __name__ == "__main__":
    terminal.start()
import math  # noqa: E402
from pathlib import Path  # noqa: E402

from tinymup.backend import use  # noqa: E402
from tinymup.lab import data, dump, optimum, plan, plot, run, sweep  # noqa: E402
from tinymup.lab.config import GROUPS, same_program  # noqa: E402
from tinymup.lab.flags import Parser, add_config, configs_of, numbers  # noqa: E402
from tinymup.lab.results import Results, finished  # noqa: E402
from tinymup.lab.tables import TABLE_FORMATS, explain  # noqa: E402

EXAMPLES = """Trains a network, or sweeps over widths and learning rates:

  python train.py                  one small μP Transformer, and a sample of what it writes
  python train.py --width 64 128 256 --lr 2^-10:2^-4 --param sp mup --jobs 2
                                   a sweep: table, optimum per width, drift, plot
  python train.py --width 64 128 256 --lr-factor 2^-3:2^3 --param sp mup umup
                                   around the default learning rate of each
  python train.py --width 1024 --optimizer muon --explain
                                   what each parameter would get

Every flag of the model, the scaling and the training takes several values and is then an axis of
the sweep. Ranges include both ends: 2^-10:2^-4 is each power of two, 2^-8:2^-4:0.5 goes in half
octaves, and 64:256:64 in steps of 64. A sweep appends each finished run to results.jsonl in --out
and skips those already there.

In the list, a semicolon precedes the runs that use an option, and brackets hold its default."""
INTERRUPTED = ("interrupted: finished runs are kept, and the same command trains the others; "
               "add --resume to continue them from their checkpoints")


def parser():
    """The command line."""
    p = Parser("train.py", "python train.py [--width N ...] [--lr N ...] [option ...]", EXAMPLES)
    sections = add_config(p, *GROUPS)
    sections["training"].add_argument("--lr-factor", nargs="+", type=numbers(float), metavar="N",
                                      help="multiples of each run's default lr, instead of --lr")
    machine = sections[GROUPS[-1]]
    machine.add_argument("--jobs", type=int, default=1, metavar="N",
                         help="runs at a time; if more than one, each has one BLAS thread [1]")
    machine.add_argument("--cluster", metavar="ADDRESS",
                         help="train on a cluster: the address of its Dask scheduler, as "
                              "tcp://host:8786, or its scheduler file")
    machine.add_argument("--out", type=Path, default=Path("runs/default"), metavar="FOLDER",
                         help="where results.jsonl, plot.png and checkpoints go [runs/default]")
    machine.add_argument("--resume", action="store_true",
                         help="continue unfinished runs from their checkpoints")
    machine.add_argument("--explain", nargs="?", const="markdown", choices=TABLE_FORMATS,
                         metavar="FORMAT", help="print what each parameter will get (the first "
                         "of runs that differ only in lr or seed), and exit: "
                         f"{', '.join(TABLE_FORMATS)} [markdown]")
    machine.add_argument("--dump", type=Path, metavar="FOLDER",
                         help="train one run and write its numbers here, for a port; "
                              "--out is not used")
    machine.add_argument("--no-plot", action="store_true", help="print tables only")
    return p


def single(config, corpus, results, resume):
    """Trains one run in this process and prints its losses and a sample of text."""
    key = config.key(corpus.digest)
    same = {key, same_program(config).key(corpus.digest)}         # one program under two names
    record = next((r for name, r in results.read().items()
                   if finished(r) and same & {name, r.get("program")}), None)
    if record:
        terminal.say(
            f"this run is in {results.path} already; choose another --out to train it again")
    else:
        checkpoint = results.path.parent / f"{key}.npz"
        record, network, params = run.train(config, corpus, checkpoint, resume)
        try:
            if record["status"] == "done":
                prompt = bytes(corpus.held_out[:config.seq])
                text = run.sample(network, params, prompt, 300, config.seq, config.seed)
                record["sample"] = text[config.seq:].decode("utf-8", "replace")
        finally:                                # also if the sample is interrupted
            results.append(record)
    curve = record.get("curve", [])
    shown = curve[:-1:4] + curve[-1:]
    print("  ".join(f"step {step}: {loss:.3f}" for step, loss in shown if loss is not None))
    if record["status"] == "diverged":
        print("diverged: choose a smaller --lr")
        return
    speed = record.get("tokens_per_second")     # an old line may lack it
    print(f"held-out loss {record['loss']:.4f} nats per byte "
          f"({record['loss'] / math.log(2):.3f} bits)"
          + (f", {record['seconds']:.0f} s, {speed:,.0f} tokens/s" if speed else ""))
    if "sample" in record:                      # a run of a sweep has none
        print("\n" + terminal.escaped(record["sample"]))


def many(configs, corpus, results, flags):
    """Trains the missing runs, prints the tables, draws the plot. Returns how many runs failed."""
    records = sweep.run_all(configs, corpus, results, flags["jobs"], flags["resume"],
                            cluster=flags["cluster"])
    size, groups = optimum.curves(records)
    print(optimum.report(size, groups))
    drawable = any(optimum.optimum(points) for by_size in groups.values()
                   for points in by_size.values())
    if drawable and not flags["no_plot"]:
        plot.loss_against_lr(size, groups, flags["out"] / "plot.png")
        print(f"\nplot: {flags['out'] / 'plot.png'}")
    return sum(record["status"] == "failed" for record in records)


def main(arguments=None):
    """Parses the command line, trains what results.jsonl lacks, and prints the results."""
    p = parser()
    with terminal.program(p.prog, INTERRUPTED):
        flags = vars(p.parse_args(arguments))
        if flags["jobs"] < 1:
            raise ValueError(f"--jobs {flags['jobs']}: must be 1 or more")
        if flags["cluster"] == "":
            raise ValueError("--cluster is empty: give a scheduler's address or its file")
        configs = configs_of(flags)
        if flags["explain"]:
            return print(explain(configs, flags["explain"]))
        if not flags["cluster"]:
            plan.check_memory(configs)
            use(configs[0].device)
        corpus = data.load(configs[0].data, max(c.seq for c in configs))
        if flags["dump"]:
            if len(configs) > 1 or flags["cluster"]:
                found = "--cluster" if flags["cluster"] else f"{len(configs)} runs"
                raise ValueError(f"--dump {flags['dump']}: needs a single run on this machine, "
                                 f"and these flags ask for {found}")
            losses = dump.write(flags["dump"], configs[0], corpus)
            return print(f"losses {losses[0]:.4f} … {losses[-1]:.4f}: {flags['dump']}/index.json")
        results = Results(flags["out"])
        if len(configs) == 1 and not flags["cluster"]:
            return single(configs[0], corpus, results, flags["resume"])
        failed = many(configs, corpus, results, flags)
        if failed:
            p.exit(1, f"{failed} of {len(configs)} runs failed, see 'reason' in {results.path}; "
                      "the same command tries them again\n")


if __name__ == "__main__":
    main()
