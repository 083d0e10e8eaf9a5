"""The command line: how its words are read, and a parser made from the fields of `Config`."""
import argparse
import math
import re
from decimal import Decimal

from .config import (
    BASE, DEFAULTS, FIELDS, GROUPS, UNIT_DEFAULTS, Config, changed, complete, flag, spelled)
from .sweep import grid

MOST_RUNS = 1_000_000
TOO_MANY = f"give at most {MOST_RUNS:,}"


def steps_between(first, last, step):
    """The numbers from first to last, both included, as Decimals, which hold 0.1 exactly.

    Errors: ValueError or ArithmeticError if last is not a whole number of steps after first.
    """
    first, last, step = map(Decimal, (first, last, step))
    count = (last - first) / step + 1
    if step <= 0 or count < 1 or count % 1:
        raise ValueError
    if count > MOST_RUNS:
        raise argparse.ArgumentTypeError(f"a range of {count:,.0f} numbers: {TOO_MANY}")
    return [first + i * step for i in range(int(count))]


def values_of(word, kind):
    """The numbers that a word stands for: 128, 0.01, 2^-6, or a range that includes both ends.

    Ranges are 2^-10:2^-4 (each power of two), 2^-8:2^-4:0.5 (half octaves) and 64:256:64.
    Errors: ValueError, TypeError or ArithmeticError for any other word.
    """
    if powers := re.fullmatch(r"2\^([^:]*):2\^([^:]*)(?::([^:]*))?", word):
        values = [2.0**float(exponent) for exponent in steps_between(*powers.groups("1"))]
    elif word.startswith("2^"):
        values = [2.0**float(word[2:])]
    else:
        values = steps_between(*word.split(":")) if ":" in word else [kind(word)]
    if kind is int and any(v % 1 or abs(v) >= 2**63 for v in values):
        raise ValueError
    return [kind(v) for v in values]


def numbers(kind):
    """A parser of one word into a list of numbers of this kind, int or float."""
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
    """The word on or off as a list of one bool."""
    if word not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"{word!r}: wanted on or off")
    return [word == "on"]


def pair(word):
    """Two numbers with a comma, as in 0.9,0.99, as a list of one pair."""
    try:
        first, second = map(float, word.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{word[:60]!r}: wanted two numbers as in 0.9,0.99") from None
    return [(first, second)]


WORDS = {int: numbers(int), float: numbers(float), bool: switch, tuple: pair, str: lambda w: [w]}


class Parser(argparse.ArgumentParser):
    """A parser whose help opens with usage and examples. Its errors are ValueErrors of one line."""

    def __init__(self, prog, usage, examples):
        super().__init__(prog=prog, usage=usage, description=examples, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        raise ValueError(f"{message}; see --help")


def help_of(name):
    """The --help text of a field: its meaning; the runs that use it; its default in brackets."""
    parts = [FIELDS[name].metadata["help"]]
    for owner, values in FIELDS[name].metadata["owner"].items():
        others = [v for v in FIELDS[owner].metadata["choices"] if v not in values]
        parts.append("/".join(values) if len(values) <= len(others) else "not " + "/".join(others))
    default = defaults_of(name)
    return "; ".join(parts) + (f" [{default}]" if default else "")


def defaults_of(name):
    """The default of a field, or that of each optimizer. Empty where the help text says it."""
    found = []
    for param, defaults in ("", DEFAULTS), ("umup ", UNIT_DEFAULTS):
        for optimizer, values in defaults.items():
            if name in values and optimizer != "muonclip":   # its defaults are those of muon
                power = name in ("lr", "adam_lr")
                value = f"2^{math.log2(values[name]):g}" if power else spelled(values[name])
                found.append(f"{param}{optimizer} {value}")
    if found:
        return ", ".join(found)
    default = BASE.get(name, FIELDS[name].default)
    return "" if default in (None, ()) else spelled(default)


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
    axes, fixed = {}, {}                  # fixed: the fields with one value for all runs
    for name in (name for name in FIELDS if flags.get(name) is not None):
        if FIELDS[name].metadata["group"] != GROUPS[-1]:
            axes[name] = distinct(flags[name])
        else:
            fixed[name] = tuple(distinct(flags[name])) if name == "data" else flags[name][0]
    factors = distinct(flags.get("lr_factor") or [])
    if factors and "lr" in axes:
        raise ValueError("--lr and --lr-factor: give one of them")
    runs = math.prod(map(len, [*axes.values(), factors or [1]]))
    if runs > MOST_RUNS:
        raise ValueError(f"a grid of {runs:,} runs: {TOO_MANY}")
    configs = grid(Config(**fixed), axes)
    if factors:
        configs = [complete(changed(c, {"lr": c.lr * f})) for c in configs for f in factors]
    return configs


def distinct(words):
    """The values of all words, each once."""
    return list(dict.fromkeys(value for values in words for value in values))
