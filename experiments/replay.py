"""Claims: the code as it is now still gives the committed results, and what older commits compute.

    python experiments/replay.py --jobs 2

The CSVs were written by several commits, on several machines and BLAS kernels. Of each CSV of runs
we take five from its smallest networks, spread over the file, and train them again: on a CPU, also
those that were on a GPU. Left out are the CSVs without a small network, those with other columns,
and corpora.py's, whose texts are not part of the project. Each run is then trained a third time, on
the same kernel, by the commit that its CSV names: what differs there is the code, not the kernel.

The first is refuted by a loss that differs by more than 0.02 nats, about what seeds differ by. The
second by any loss in which the two commits differ, in five decimals.
"""
import ast
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import transfer  # first of ours: it sets the path
from tinymup.lab import worker
from tinymup.lab.config import FIELDS, Config, complete
from tinymup.lab.plan import work

RUNS, ENOUGH, LIMIT = 5, 0.02, 5e12       # runs of a CSV, nats, FLOPs of a run
COLUMNS = ["experiment", "commit", "param", "optimizer", "width", "lr", "seed", "loss", "again",
           "at its commit"]
# What an older commit is asked to do. It lacks the options that came later, here at their default.
TRAIN = """
import json, sys
from tinymup.lab import data, run
from tinymup.lab.config import Config, complete
losses = []
for fields in json.load(sys.stdin):
    known = {name: value for name, value in fields.items() if name in Config.__dataclass_fields__}
    config = complete(Config(**known | {"betas": tuple(known["betas"]), "data": ()}))
    losses.append(run.train(config, data.load(seq=config.seq))[0]["loss"])
print(json.dumps(losses))
"""


def value(text):
    """An option's value from its text: a number, None, a tuple, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def configs_of(name):
    """(commit, [(Config, loss or None)]) of a CSV of runs; the list is empty for other CSVs."""
    first = (transfer.RESULTS / f"{name}.csv").read_text(encoding="utf-8").partition("\n")[0]
    rows = transfer.rows_of(name)
    if not {"status"} < set(rows[0]) <= {*FIELDS, *transfer.OUTCOME}:
        return "", []
    pattern = rf"; commit (\w+)[; ].*?; ((?:{'|'.join(FIELDS)}) .*)"
    commit, fixed = re.search(pattern, first).groups()
    parts = re.split(rf"(?:^|, )({'|'.join(FIELDS)}) ", fixed)[1:]
    options = {field: value(text) for field, text in zip(parts[::2], parts[1::2])}
    runs = [(options | {field: value(text) for field, text in row.items()
                        if field in FIELDS and text} | {"device": "cpu"},
             float(row["loss"]) if row["loss"] else None) for row in rows]
    return commit, [(complete(Config(**fields)), loss) for fields, loss in runs]


def chosen():
    """[(experiment, commit, Config, loss)]: of each CSV a few runs, from its smallest networks."""
    found = []
    for path in sorted(transfer.RESULTS.glob("*.csv")):
        commit, runs = configs_of(path.stem)
        runs = [run for run in runs if not run[0].data]
        least = min((work(config) for config, _ in runs), default=0)
        small = [run for run in runs if work(run[0]) < min(2 * least, LIMIT)]
        picks = {round(i * (len(small) - 1) / (RUNS - 1)) for i in range(RUNS)} if small else ()
        found += [(path.stem, commit, *small[i]) for i in sorted(picks)]
    return found


def at_commit(commit, configs):
    """[loss, or None] of the configs, trained by the code of a commit, with one thread."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "-C", transfer.ROOT, "archive", commit],
                                 capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        done = subprocess.run([sys.executable, "-c", TRAIN], cwd=folder, check=True, text=True,
                              input=json.dumps(list(map(vars, configs))), stdout=subprocess.PIPE,
                              env=os.environ | dict.fromkeys(worker.THREADS, "1"))
    return json.loads(done.stdout.splitlines()[-1])       # the lines before are of its training


def train(flags):
    """Trains what was chosen, and writes the CSV. Runs of other commits are not reused."""
    runs = chosen()
    configs = list(dict.fromkeys(config for *_, config, _ in runs))
    records, about = transfer.finished_runs(f"replay_{transfer.commit()}", configs, flags, "replay")
    again = {config: record["loss"] for config, record in zip(configs, records)}
    by_commit = {}
    for _, commit, config, _ in runs:
        by_commit.setdefault(commit, []).append(config)
    with ThreadPoolExecutor(flags.jobs) as pool:
        losses = pool.map(at_commit, by_commit, by_commit.values())
        there = {(commit, config): loss for commit, found in zip(by_commit, losses)
                 for config, loss in zip(by_commit[commit], found)}
    transfer.write("replay", about, COLUMNS, [
        [name, commit, c.param, c.optimizer, c.width, c.lr, c.seed,
         *map(transfer.digits, (loss, again[c], there[commit, c]))]
        for name, commit, c, loss in runs])


def difference(row):
    """|loss − loss again|: 0 if neither has one, infinite if one of them diverged."""
    losses = [row["loss"], row["again"]]
    if "" in losses:
        return 0.0 if losses == ["", ""] else math.inf
    return abs(float(losses[0]) - float(losses[1]))


def report(rows):
    """A row per CSV: how many losses agree to the last digit, and the largest difference."""
    lines = [f"{'experiment':20}{'commit':>10}{'runs':>6}{'equal':>7}{'largest difference':>20}"
             f"{'now as at its commit':>22}"]
    for name in dict.fromkeys(row["experiment"] for row in rows):
        own = [row for row in rows if row["experiment"] == name]
        differences = [difference(row) for row in own]
        lines.append(f"{name:20}{own[0]['commit']:>10}{len(own):>6}{differences.count(0.0):>7}"
                     f"{max(differences):>20.5f}"
                     f"{sum(row['again'] == row['at its commit'] for row in own):>22}")
    against = [f"{row['experiment']}, {row['param']}, width {row['width']}, lr "
               f"2^{math.log2(float(row['lr'])):.3g}: {row['loss'] or 'diverged'}, now "
               f"{row['again'] or 'diverged'}" for row in rows if difference(row) > ENOUGH]
    changed = [f"{row['experiment']}: {row['at its commit']} at {row['commit']}, now {row['again']}"
               for row in rows if row["again"] != row["at its commit"]]
    return "\n".join([*lines, f"the committed results: {transfer.verdict(against)}",
                      f"the older code, on one kernel: {transfer.verdict(changed)}"])


if __name__ == "__main__":
    flags = transfer.arguments(__doc__)
    if not flags.redraw:
        train(flags)
    print(report(transfer.rows_of("replay")))
