"""What a sweep's table, sentence and figure say of seeds, of drift, and of odd numbers."""
import re
import statistics

import pytest

from tinymup.lab.config import Config, record_of
from tinymup.lab.optimum import curves, movement, point, report

LRS = [2.0**x for x in range(-9, -2)]


def records(vertex, seeds, sizes=(64, 128, 256), lrs=LRS):
    """Records of parabolas. vertex(width, seed) → log2 of the best lr; seeds(width) → its seeds."""
    return [{"config": record_of(Config(width=width, lr=lr, seed=seed)), "status": "done",
             "loss": 2 + 0.1 * (k - vertex(width, seed))**2}
            for width in sizes for seed in seeds(width)
            for k, lr in zip(range(-9, -2), LRS) if lr in lrs]


def of_sizes(*arguments, **options):
    """{width: [Point, …]} of such records."""
    (by_size,) = curves(records(*arguments, **options))[1].values()
    return by_size


# Drift over seeds

VERTEX = {0: 0.3, 1: 0.25, 2: 0.2}       # octaves per doubling that each seed's optimum falls


def falling(width, seed):
    return -6 - VERTEX.get(seed, 5) * {64: 0, 128: 1, 256: 2}[width]


def test_a_drift_has_its_spread_over_seeds_and_its_size_per_doubling():
    by_size = of_sizes(falling, lambda width: (0, 1, 2))
    moved = movement(by_size)
    # The vertex of a mean of parabolas of one curvature is the mean of their vertices. Rounding as
    # for one parabola.
    assert moved.octaves == pytest.approx(-0.5, abs=1e-11) and moved.exact
    assert moved.by_seed == pytest.approx([-0.6, -0.5, -0.4], abs=1e-11)
    assert moved.per_doubling == pytest.approx(-0.25, abs=1e-11)
    assert statistics.stdev(moved.by_seed) == pytest.approx(0.1, abs=1e-11)
    line = report("width", {"mup": by_size}).splitlines()[-1]
    assert line == ("mup: the best lr moves by -0.50 ± 0.10 octaves from width 64 to 256: it stays "
                    "(-0.25 per doubling; 3 seeds)")


def test_one_seed_has_no_spread():
    line = report("width", {"mup": of_sizes(falling, lambda width: (0,))}).splitlines()[-1]
    assert "-0.60 octaves" in line and "±" not in line and "seeds" not in line


def test_a_drift_is_that_of_the_seeds_that_all_sizes_share_and_says_so():
    def seeds(width):
        return {64: (0, 2, 7), 128: (0, 1, 2), 256: (0, 2)}[width]   # 7 has its optimum elsewhere
    moved = movement(of_sizes(falling, seeds))
    assert moved.shared == [0, 2] and moved.differ
    assert moved.octaves == pytest.approx(-0.5, abs=1e-11)
    text = report("width", {"mup": of_sizes(falling, seeds)})
    assert "of seeds 0, 2, which all have" in text and "mean of 2 to 3 seeds" in text


def test_seeds_of_which_one_lr_has_more_differ():
    made = records(falling, lambda width: (0, 1))
    made += records(falling, lambda width: (2,), lrs=LRS[:1])
    (by_size,) = curves(made)[1].values()
    assert movement(by_size).shared == [0, 1] and movement(by_size).differ


def test_without_a_common_seed_the_drift_is_that_of_all_and_says_so():
    by_size = of_sizes(lambda width, seed: -6, lambda width: (width,))
    assert movement(by_size).octaves == pytest.approx(0, abs=1e-11)
    assert "no seed has run everywhere" in report("width", {"mup": by_size})


def test_a_seed_that_diverged_everywhere_at_one_size_has_no_drift_of_its_own():
    made = records(falling, lambda width: (0, 1))
    for record in made:
        if record["config"]["seed"] == 1 and record["config"]["width"] == 256:
            record["loss"] = None
    (by_size,) = curves(made)[1].values()
    assert movement(by_size).octaves is None and len(movement(by_size).by_seed) == 1


# The table

@pytest.mark.parametrize("loss", [123456.789, 1234567.0, 1e12])
def test_a_large_loss_does_not_run_into_the_next_column(loss):
    curve = [point(lr, {0: loss + i}) for i, lr in enumerate(LRS)]
    header, row = report("width", {"mup": {64: curve}}).splitlines()[1:3]
    assert [float(cell.strip("*")) for cell in row.split()[1:-1]] == [loss + i for i in range(7)]
    ends = [[match.end() for match in re.finditer(r"\S+", line)] for line in (header, row)]
    assert all(0 <= a - b <= 1 for a, b in zip(*(line[1:-2] for line in ends)))   # 1: the star
