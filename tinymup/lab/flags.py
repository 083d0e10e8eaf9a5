"""The command line's words, and a parser made from the fields of `Config`."""
import argparse
import math
from dataclasses import replace
from decimal import Decimal

from .config import BASE, DEFAULTS, FIELDS, GROUPS, UNIT_DEFAULTS, Config, complete, flag, spelled
from .sweep import grid

MOST_RUNS = 1_000_000
TOO_MANY = f"give at most {MOST_RUNS:,}"

def steps(first, last, step):
    """The numbers from first to last, as one would type them.

    Errors: ValueError or ArithmeticError unless whole steps lead up to last.
    """
    first, last, step = map(Decimal, (first, last, step))
    count = (last - first) / step + 1
    if step <= 0 or count < 1 or count % 1:
        raise ValueError
    if count > MOST_RUNS:
        raise argparse.ArgumentTypeError(f"a range of {count:,.0f} numbers: {TOO_MANY}")
    return [first + i * step for i in range(int(count))]


def values_of(word, kind):
    """The numbers that a word stands for. Errors: as `steps`, or ValueError."""
    first, *rest = word.split(":")
    if not first.startswith("2^"):
        values = steps(first, *rest) if rest else [kind(word)]
    elif rest:
        last, step = rest if len(rest) == 2 else (*rest, 1)
        if not last.startswith("2^"):
            raise ValueError
        values = [2.0**float(e) for e in steps(first[2:], last[2:], step)]
    else:
        values = [2.0**float(first[2:])]
    if kind is int and any(v % 1 or abs(v) >= 2**63 for v in values):
        raise ValueError
    return [kind(v) for v in values]


def numbers(kind):
    """A parser of one word into a list of numbers. The ends of a range are included.

    Words are 128, 0.01, 2^-6, 2^-10:2^-4 (each power), 2^-8:2^-4:0.5 (half octaves), 64:256:64.
    """
    def parse(word):
        try:
            return values_of(word, kind)
        except (ValueError, TypeError, ArithmeticError):
            wanted = "a whole number below 2^63" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"{word[:60]!r}: wanted {wanted}, 2^k, or a rising range 2^a:2^b, "
                "2^a:2^b:step or a:b:step") from None
    return parse


def switch(word):
    """on or off, as a list of one bool."""
    if word not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"{word!r}: wanted on or off")
    return [word == "on"]


def pair(word):
    """0.9,0.99 as a list of one pair."""
    try:
        first, second = map(float, word.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{word[:60]!r}: wanted two numbers as in 0.9,0.99") from None
    return [(first, second)]


WORDS = {int: numbers(int), float: numbers(float), bool: switch, tuple: pair, str: lambda w: [w]}


class Parser(argparse.ArgumentParser):
    """Its help opens with the usage and examples. Errors: ValueError, one line."""

    def __init__(self, prog, usage, examples):
        super().__init__(prog=prog, usage=usage, description=examples, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        raise ValueError(f"{message}; see --help")


def help_of(name):
    """The help text of a field: what it is, which runs use it, its default."""
    about = FIELDS[name].metadata
    users = []
    for owner, values in about["owner"].items():
        others = [v for v in FIELDS[owner].metadata["choices"] if v not in values]
        users.append("/".join(values) if len(values) <= len(others) else
                     "not " + "/".join(others))
    default = defaults_of(name)
    return ("; ".join([about["help"], *users]) + (f" [{default}]" if default else "")
            ).replace("%", "%%")


def defaults_of(name):
    """The default of a field, or those of the optimizers. Nothing if it needs a sentence."""
    found = []
    for param, defaults in ("", DEFAULTS), ("umup ", UNIT_DEFAULTS):
        for optimizer, values in defaults.items():
            if name in values and optimizer != "muonclip":   # which has those of Muon
                power = name in ("lr", "adam_lr")
                value = f"2^{math.log2(values[name]):g}" if power else spelled(values[name])
                found.append(f"{param}{optimizer} {value}")
    default = BASE.get(name, FIELDS[name].default)
    return ", ".join(found) if found else "" if default in (None, ()) else spelled(default)


def add_config(parser, *groups):
    """Adds a flag for every field of `Config` in these groups, and returns {group: section}."""
    sections = {group: parser.add_argument_group(group) for group in groups}
    for name, f in FIELDS.items():
        about = f.metadata
        if about["group"] in groups:
            single = about["group"] == GROUPS[-1] and name != "data"   # one value for all runs
            metavar = {bool: "on/off", tuple: "B1,B2"}.get(about["kind"], "N")
            sections[about["group"]].add_argument(
                flag(name), nargs=None if single else "+", type=WORDS[about["kind"]],
                metavar="NAME" if about["choices"] else "PATH" if name == "data" else metavar,
                help=help_of(name))
    return sections


def configs_of(flags):
    """The complete configs that the parsed flags ask for.

    Errors: ValueError, one line, for flags that do not go together.
    """
    given = {name: flags[name] for name in FIELDS if flags.get(name) is not None}
    fixed = {name: given.pop(name) for name in list(given)
             if FIELDS[name].metadata["group"] == GROUPS[-1]}
    fixed = {name: tuple(distinct(words)) if name == "data" else words[0]
             for name, words in fixed.items()}
    if flags.get("lr_factor") and "lr" in given:
        raise ValueError("--lr and --lr-factor: give one of them")
    axes = {name: distinct(words) for name, words in given.items()}
    factors = distinct(flags.get("lr_factor") or [])
    runs = math.prod(map(len, [*axes.values(), factors or [1]]))
    if runs > MOST_RUNS:
        raise ValueError(f"a grid of {runs:,} runs: {TOO_MANY}")
    configs = grid(Config(**fixed), axes)
    if factors:
        configs = [complete(replace(c, lr=c.lr * factor)) for c in configs for factor in factors]
    return configs


def distinct(words):
    """The values of all words, each once."""
    return list(dict.fromkeys(value for values in words for value in values))
