"""Trains a network, or sweeps over widths and learning rates, from the command line: `python train.py --help`."""
import argparse
import math
import sys
from dataclasses import fields, replace
from pathlib import Path

from tinymup import data, plot, run, sweep
from tinymup.network import BASE, DEFAULTS, MODELS, OPTIMIZERS, UNIT_DEFAULTS, Config, build, complete
from tinymup.number_formats import MATMUL_FORMATS
from tinymup.ops import ACTIVATIONS
from tinymup.orthogonalize import COEFFICIENTS
from tinymup.scaling import DEPTH_RULES, PARAMETRIZATIONS, SHAPE_FACTORS, render, resolved

EXAMPLES = """
  python train.py                                              one small μP Transformer, and a sample of what it writes
  python train.py --width 64 128 256 --lr 2^-10:2^-4 --param sp mup --jobs 2
                                                               a sweep: table, optimum per width, drift, plot
  python train.py --width 64 128 256 --lr-factor 2^-3:2^3 --param sp mup umup
                                                               around the default learning rate of each

Every flag of the model and the optimizer takes several values, and then is an axis of the sweep. 2^-10:2^-4 is the range of
the powers of two, ends included. A sweep appends each finished run to results.jsonl in --out and skips those already there."""


def power_of_two(text):
    """2^-6 as log2; None for anything else."""
    return float(text[2:]) if text.startswith("2^") else None


def numbers(kind):
    """A parser of one command-line word into a list of ints or floats: 128, 0.01, 2^-6, or a range 2^-10:2^-4."""
    def parse(word):
        first, colon, last = word.partition(":")
        try:
            low, high = power_of_two(first), power_of_two(last)
            if colon:
                if low is None or high is None or low > high or low % 1 or high % 1:
                    raise ValueError
                values = [2.0**e for e in range(int(low), int(high) + 1)]
            else:
                values = [2.0**low if low is not None else kind(word)]
            if any(kind(v) != v for v in values):
                raise ValueError
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"{word!r}: wanted {'a whole' if kind is int else 'a'} number, 2^k, or a rising range 2^a:2^b") from None
        return [kind(v) for v in values]
    return parse


def switch(word):
    """on or off, as a list of one."""
    if word not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"{word!r}: wanted on or off")
    return [word == "on"]


def pair(word):
    """0.9,0.99 as a list of one pair."""
    try:
        first, second = map(float, word.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r}: wanted two numbers as in 0.9,0.99") from None
    return [(first, second)]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line and exits with status 2."""

    def error(self, message):
        """Prints the message."""
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def parser():
    """The command line. A flag of `Config` is an axis, its values a list of lists that `main` joins."""
    p = Parser(description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    defaults = Config()

    def axis(group, name, help, **kind):
        default = BASE.get(name, getattr(defaults, name))
        if isinstance(default, bool):
            default = "on" if default else "off"
        group.add_argument("--" + name.replace("_", "-"), nargs="+", help=help if default is None else f"{help} [{default}]", **kind)

    def choice(group, name, help, choices):
        axis(group, name, f"{help}: {', '.join(choices)}", choices=list(choices), metavar="NAME")

    model = p.add_argument_group("model")
    choice(model, "model", "what is trained", MODELS)
    axis(model, "width", "size of the residual stream, or of a hidden layer", type=numbers(int))
    axis(model, "depth", "blocks, or hidden layers", type=numbers(int))
    axis(model, "head_dim", "size of an attention head; heads = width / head-dim", type=numbers(int))
    choice(model, "ffn", "feed-forward activation", [*ACTIVATIONS, "swiglu"])
    for name, help in [("tied", "embedding and readout are one matrix"), ("gains", "learned gains after the norms"),
                       ("biases", "biases after the matrices"), ("zero_readout", "readout starts at 0"), ("zero_query", "queries start at 0")]:
        axis(model, name, f"on or off: {help}", type=switch)

    scale = p.add_argument_group("scaling (`python -m tinymup.scaling` prints the tables)")
    choice(scale, "param", "parametrization", PARAMETRIZATIONS)
    axis(scale, "base_width", "at this width all parametrizations but u-μP are the same", type=numbers(int))
    axis(scale, "base_depth", "likewise for the depth rule", type=numbers(int))
    axis(scale, "base_head_dim", "at this head size μP's attention scale is SP's", type=numbers(int))
    choice(scale, "depth_rule", "scaling of residual branches with depth", DEPTH_RULES)
    for name, help in [("init_scale", "initial standard deviations"), ("embed_mult", "embedding"), ("attn_mult", "attention logits"), ("output_mult", "logits")]:
        axis(scale, name, f"factor on the {help}", type=numbers(float))
    for name, help in [("alpha_attn", "attention logits"), ("alpha_ffn", "activation's input"), ("alpha_res", "residual branches against the embedding"),
                       ("alpha_res_ratio", "attention branches against feed-forward ones"), ("alpha_loss", "logits in the loss")]:
        axis(scale, name, f"umup: weight of the {help}", type=numbers(float))
    choice(scale, "matmul_format", "simulated number format of the hidden matrices' operands", ["float", *MATMUL_FORMATS])

    training = p.add_argument_group("training")
    choice(training, "optimizer", "what updates the parameters", OPTIMIZERS)
    best = ", ".join(f"{n} {d['lr']:g}, umup {UNIT_DEFAULTS[n]['lr']:g}" for n, d in DEFAULTS.items())
    axis(training, "lr", f"peak learning rate at the base width [{best}]", type=numbers(float))
    training.add_argument("--lr-factor", nargs="+", type=numbers(float), help="multiples of each default lr, instead of --lr")
    axis(training, "adam_lr", "of what Muon leaves to AdamW [AdamW's]", type=numbers(float))
    axis(training, "momentum", "of sgd [0] and muon [0.95]", type=numbers(float))
    axis(training, "nesterov", "on or off: momentum looks ahead, sgd [off], muon [on]", type=switch)
    choice(training, "momentum_form", "of muon", ["ema", "sum"])
    choice(training, "muon_scale", "shape factor of muon's step", SHAPE_FACTORS)
    axis(training, "muon_per_head", "on or off: queries, keys, values orthogonalised head by head", type=switch)
    choice(training, "coefficients", "Newton–Schulz polynomial", COEFFICIENTS)
    axis(training, "newton_schulz_steps", "[the polynomial's customary number]", type=numbers(int))
    axis(training, "qk_clip_threshold", "muonclip: largest attention logit", type=numbers(float))
    axis(training, "betas", "of adamw, as in 0.9,0.99", type=pair, metavar="B1,B2")
    axis(training, "eps", "of adamw, at the base width", type=numbers(float))
    axis(training, "weight_decay", "λ, per step at the schedule's peak", type=numbers(float))
    choice(training, "decay_form", "w shrinks by λ, or by lr·λ", ["independent", "coupled"])
    axis(training, "clip", "largest global norm of the effective gradients; 0: none", type=numbers(float))
    axis(training, "steps", "updates", type=numbers(int))
    axis(training, "warmup", "steps of linear warm-up", type=numbers(int))
    choice(training, "schedule", "learning rate after the warm-up", ["constant", "linear", "cosine", "wsd"])
    axis(training, "batch", "sequences per step", type=numbers(int))
    axis(training, "seq", "bytes per sequence", type=numbers(int))
    axis(training, "seed", "of initial parameters and batches", type=numbers(int))

    work = p.add_argument_group("input, output, machine")
    work.add_argument("--data", nargs="+", default=[], metavar="PATH", help="files, directories or globs of text [the standard library's source]")
    work.add_argument("--dtype", choices=["float32", "float64"], default=defaults.dtype, help="[float32]")
    work.add_argument("--device", choices=["cpu", "gpu"], default=defaults.device, help="[cpu]")
    work.add_argument("--jobs", type=int, default=1, help="runs side by side, one BLAS thread each where more than one [1]")
    work.add_argument("--out", type=Path, default=Path("runs/default"), metavar="FOLDER", help="results.jsonl, plot.png, checkpoints [runs/default]")
    work.add_argument("--resume", action="store_true", help="continue unfinished runs from their checkpoints")
    work.add_argument("--explain", action="store_true", help="print what each parameter will get, and exit")
    work.add_argument("--no-plot", action="store_true", help="tables only")
    return p


def explain(configs):
    """Prints the resolved table of each configuration, seeds and learning rates beyond the first left out."""
    shown = set()
    for config in configs:
        identity = replace(config, lr=0.0, seed=0)
        if identity not in shown:
            shown.add(identity)
            network = build(config)
            print(f"\n{config.param}, {config.optimizer}, width {config.width}, depth {config.depth}: lr {config.lr:g}, "
                  f"attention logits × {network.scales.attention:.4g}\n\n{render(resolved(network.rows))}")


def single(config, corpus, results, resume):
    """One run in this process, with a progress bar and a sample of text at the end."""
    key = config.key(corpus.digest)
    record = results.read().get(key)
    if not sweep.finished(record):
        checkpoint = results.path.parent / f"{key}.npz"
        record, network, params = run.train(config, corpus, checkpoint, resume)
        if record["status"] == "done":
            text = run.sample(network, params, bytes(corpus.held_out[:config.seq]), 300, config.seq, config.seed)
            record["sample"] = text[config.seq:].decode("utf-8", "replace")
        results.append(record)
    else:
        print(f"this run is in {results.path} already; choose another --out to train it again", file=sys.stderr)
    print("  ".join(f"step {step}: {loss:.3f}" for step, loss in record["curve"][:-1:4] + record["curve"][-1:]
                    if loss is not None))
    if record["status"] == "diverged":
        print("diverged: choose a smaller --lr")
        return
    print(f"held-out loss {record['loss']:.4f} nats per byte ({record['loss'] / math.log(2):.3f} bits), "
          f"{record['seconds']:.0f} s, {record['tokens_per_second']:,.0f} tokens/s"
          + (f"\n\n{record['sample']}" if "sample" in record else ""))       # a run of a sweep has none


def main(arguments=None):
    """Parses the command line, trains what results.jsonl lacks, and prints what the results say."""
    p = parser()
    flags = vars(p.parse_args(arguments))
    base = Config(data=tuple(flags["data"]), dtype=flags["dtype"], device=flags["device"])
    axes = {}
    for field in fields(Config):
        given = flags.get(field.name)
        if isinstance(given, list) and field.name != "data":
            values = [v for item in given for v in (item if isinstance(item, list) else [item])]
            axes[field.name] = list(dict.fromkeys(values))
    try:
        if flags["jobs"] < 1:
            raise ValueError(f"--jobs {flags['jobs']}: must be 1 or more")
        configs = sweep.grid(base, axes)
        if flags["lr_factor"]:
            if "lr" in axes:
                raise ValueError("--lr and --lr-factor: give one of them")
            configs = [complete(replace(c, lr=c.lr * factor)) for c in configs for factor in dict.fromkeys(f for word in flags["lr_factor"] for f in word)]
        if flags["explain"]:
            return explain(configs)
        run.use(base.device)
        corpus = data.load(base.data, max(c.seq for c in configs))
        results = sweep.Results(flags["out"])
        if len(configs) == 1:
            return single(configs[0], corpus, results, flags["resume"])
        records = sweep.run_all(configs, corpus, results, flags["jobs"], flags["resume"])
        size, groups = sweep.curves(records)
        print(sweep.report(size, groups))
        if not flags["no_plot"] and any(record["loss"] is not None for record in records):
            plot.loss_against_lr(size, groups, flags["out"] / "plot.png")
            print(f"\nplot: {flags['out'] / 'plot.png'}")
        failed = sum(record["status"] == "failed" for record in records)
        if failed:
            p.exit(1, f"{failed} of {len(records)} runs failed, see 'reason' in {results.path}; the same command tries them again\n")
    except (ValueError, OSError) as error:
        p.exit(2, f"{p.prog}: {error}\n")
    except MemoryError:
        p.exit(2, f"{p.prog}: out of memory: choose a smaller --width, --batch or --seq, or fewer --jobs\n")
    except KeyboardInterrupt:
        p.exit(130, "\ninterrupted: finished runs are kept; the same command goes on, with --resume also inside a run\n")


if __name__ == "__main__":
    main()
