"""Checks the numbers of a port: `python -m tinymup.vectors check CASE.json MINE.json`.

MINE.json has some of the case's keys, each with a digest or nested lists of numbers. The program
shows the first quantity that differs, and a hint at the cause from the ratio of the two. Exit
codes: 0 all agree, 1 something differs, 2 unusable input.
"""
import argparse
import json
from itertools import permutations
from pathlib import Path

import numpy

IGNORED = ("case", "config", "resolved", "ids", "inputs")
# Relative to the norm. Rounding changes results by up to 1e-14 in float64, and by up to 5e-6 in
# float32 runs of tinymup. The smallest of the mistakes in tests/mistakes.py changes them by 1e-4.
TOLERANCE, TOLERANCE32 = 1e-10, 2e-5


def digest(array):
    """The shape, norm √Σ f_k², cosine Σ f_k cos k, first three values and last value of an array.

    k = 0, 1, … counts in the order of rows. The cosine tells an array from its transpose.
    """
    flat = numpy.asarray(array, float).reshape(-1)
    return {"shape": list(array.shape), "norm": float(numpy.sqrt(flat @ flat)),
            "cosine": float(flat @ numpy.cos(numpy.arange(flat.size))),
            "first": flat[:3].tolist(), "last": float(flat[-1])}


def linear_part(q):
    """What is linear in the array: a digest without its norm, or the plain numbers themselves."""
    parts = [q["cosine"], *q["first"], q["last"]] if isinstance(q, dict) else q
    return numpy.array(parts, float).reshape(-1)


def difference(case, mine):
    """The largest difference: of digests relative to the norm, of plain numbers one by one."""
    change = abs(linear_part(mine) - linear_part(case))
    if isinstance(case, dict):
        return max(change.max(), abs(mine["norm"] - case["norm"])) / (case["norm"] or 1)
    return (change / numpy.maximum(abs(linear_part(case)), 1e-300)).max()


def quantity(value, case, where):
    """A value of MINE, as a digest if the case has one. Errors: ValueError if it is unusable."""
    given, wanted = isinstance(value, dict), isinstance(case, dict)
    try:
        array = numpy.array([value["norm"], *linear_part(value)] if given else value, float)
        shape = list(value["shape"] if given else array.shape)
        numpy.broadcast_shapes(linear_part(case).shape, linear_part(value).shape if given else 1)
    except (TypeError, ValueError, KeyError):
        raise ValueError(f"{where}: no digest, and no numbers in lists of equal lengths") from None
    expected = list(case["shape"] if wanted else numpy.shape(case))
    if shape != expected or given > wanted:
        turned = ": digest the transpose" if shape == expected[::-1] else ""
        raise ValueError(f"{where}: shape {shape}, but {expected} in the case{turned}")
    if not numpy.isfinite(array).all():
        raise ValueError(f"{where}: a NaN or an infinity")
    return digest(array) if wanted and not given else value


def common(case, mine):
    """(section, name, case's value, MINE's) of all shared keys. Errors: ValueError for others."""
    def keys(ours, given, where):
        unknown = [key for key in given if key not in ours] if isinstance(given, dict) else [given]
        if unknown:
            raise ValueError(f"{where}: unknown key {unknown[0]}; known are {', '.join(ours)}")
        return [key for key in ours if key in given and key not in IGNORED]

    for section in keys(case, mine, "the file"):
        if isinstance(case[section], dict) and "norm" not in case[section]:
            for name in keys(case[section], mine[section], section):
                yield section, name, case[section][name], mine[section][name]
        else:
            yield section, "", case[section], mine[section]


def known(case, section, name):
    """{name: factor} of the factors by which a port may be off, those of this quantity first."""
    c, found = case.get("config"), dict(case.get("inputs", {}).get(section, {}))
    if c:
        rows = {row["name"]: row for row in case["resolved"]["parameters"]}
        row = rows.get({"logits": "output"}.get(name, name), {"sizes": {}, "shape": ()})
        scales, mu = case["resolved"]["scales"], c["momentum"] or 0
        found |= {f"{size} ratio": c[size] / (c["base_" + size] or c[size])
                  for size in ("width", "depth", "head_dim")}
        found |= row | row["sizes"] | dict(zip(("rows", "columns"), row["shape"]))
        found |= {"heads": c["width"] / c["head_dim"], "batch·seq": c["batch"] * c["seq"],
                  "1 + momentum: Nesterov?": 1 + mu, "1 − momentum: ema or sum?": 1 - mu,
                  "schedule's first factor": case["resolved"]["schedule"][0]}
        found |= scales | next(iter(scales["branches"]), {}) | case["resolved"]["architecture"] | c
    found = {key: x for key, x in found.items() if type(x) in (int, float) and x > 0 and x != 1}
    return found | {"2": 2, "ln 2: bits?": float(numpy.log(2)), "−1: its sign?": -1}


def named(a, b, error, numbers, close):
    """The ratio r of b = r · a in words, with the numbers it equals; "" if there is none."""
    ratio = float(a @ b / (a @ a)) if a.any() else 0.0
    if abs(b - ratio * a).max() > error:
        return ""
    names = [form.format(key) for key, x in numbers.items() for form, y in
             (("{}", x), ("1/({})", 1 / x), ("√({})", x**0.5), ("1/√({})", x**-0.5))
             if abs(ratio / y - 1) < close]
    return ("missing" if abs(ratio) < close else
            f"off by exactly {ratio:.6g} = {', or '.join(names[:3])}" if names else "")


def hint(case, section, name, a, b, given, tolerance):
    """What may be wrong with MINE's b, where the case has a. given: b as MINE.json has it."""
    numbers, close = known(case, section, name), 100 * tolerance
    x, y = linear_part(a), linear_part(b)
    error = 10 * tolerance * (a["norm"] if isinstance(a, dict) else abs(x).max())
    if words := named(x, y, error, numbers, close):
        return words
    if isinstance(a, dict) and abs(a["norm"] - b["norm"]) <= error and difference(a, b) > 0.01:
        turned = [axes for axes in permutations(range(len(a["shape"]))) if isinstance(given, list)
                  and difference(a, digest(numpy.transpose(given, axes))) <= tolerance]
        return (f"equal after transposing to the axes {turned[0]}" if turned else
                "the norm agrees: the same values in another order, transposed?")
    if section == "after_first_step":
        shrink = case["resolved"]["schedule"][0] * numbers.get("shrink_per_step", 0)
        decay = shrink * linear_part(case["init"][name])
        update = x - linear_part(case["init"][name]) + decay
        numbers["1 − decay: decay after the update?"] = 1 - shrink
        if words := named(update, update + y - x, error, numbers, close):
            return "its update is " + words
        if words := named(decay, decay + x - y, error, numbers, close):
            return "its decay is " + words
    return "no known ratio" if section not in ("after_last_step", "losses") else (
        "look at what only later steps see: momentum (Nesterov?), bias correction, schedule")


def main(arguments=None):
    """Prints how many quantities agree, and the first that differs. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tinymup.vectors", description=__doc__)
    parser.add_argument("command", choices=["check"])
    parser.add_argument("case", type=Path, metavar="CASE.json")
    parser.add_argument("mine", type=Path, metavar="MINE.json")
    parser.add_argument("--float32", action="store_true", help="MINE is of single precision")
    args = parser.parse_args(arguments)
    tolerance, path = TOLERANCE32 if args.float32 else TOLERANCE, args.case
    try:
        case, path = json.loads(path.read_text("utf-8")), args.mine
        pairs = [(*keys, a, quantity(value, a, " ".join(keys).strip()), value)
                 for *keys, a, value in common(case, json.loads(path.read_text("utf-8")))]
        if not pairs:
            raise ValueError("no quantity of the case: give one or more of its keys")
    except (OSError, TypeError, ValueError) as error:             # not JSON: a ValueError
        print(f"{path}: {getattr(error, 'strerror', None) or error}")
        return 2
    wrong = [pair for pair in pairs if not difference(*pair[2:4]) <= tolerance]
    print(f"{len(pairs) - len(wrong)} of {len(pairs)} quantities agree to {tolerance:g}")
    for section, name, a, b, value in wrong[:1]:
        print(f"the first difference: {section} {name}".strip(), f"case  {a}", f"mine  {b}",
              f"hint  {hint(case, section, name, a, b, value, tolerance)}", sep="\n  ")
    return 1 if wrong else 0
