"""What the figures show: names, stars, crosses, and what "tuned at the small width" means."""
import math
import statistics
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from tinymup.lab import plot
from tinymup.lab.optimum import optimum, point

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "experiments"))
import summary  # noqa: E402
import tuned_small  # noqa: E402


def curve(losses):
    """The points of {log2 lr: loss}, or of {log2 lr: [loss of each seed]}."""
    return [point(2.0**x, dict(enumerate(y if isinstance(y, list) else [y])))
            for x, y in sorted(losses.items())]


def parabola(vertex, xs=range(-9, -2)):
    return {x: 2 + 0.1 * (x - vertex)**2 for x in xs}


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A function from groups to the figure of their losses."""
    figures = []

    def draw(groups):
        with monkeypatch.context() as m:
            m.setattr(plot.plt, "close", figures.append)
            plot.loss_against_lr("width", groups, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
        return figures[-1]
    yield draw
    for figure in figures:
        plot.plt.close(figure)


def marks(ax, marker):
    """The lines of an axes that have a marker."""
    return [line for line in ax.lines if line.get_marker() == marker]


def test_groups_have_their_names_in_print():
    labels = ["mup", "sp, adamw", "umup, eps 0.1", "ntk, muon", "other"]
    assert list(map(plot.named, labels)) == [
        "μP", "SP, AdamW", "u-μP, eps 0.1", "NTK, Muon", "other"]


def test_a_title_has_the_name_in_print_and_the_drift_with_its_spread(drawn):
    by_size = {64: curve({x: [2 + (x + 6)**2, 2 + (x + 6)**2] for x in range(-9, -2)}),
               128: curve({x: [2 + (x + 6.3)**2, 2 + (x + 6.7)**2] for x in range(-9, -2)})}
    spread = statistics.stdev([-0.3, -0.7])
    assert [ax.get_title() for ax in drawn({"mup": by_size, "umup": by_size}).axes] == [
        f"{name}\nbest lr moves by -0.50 ± {spread:.2f} octaves" for name in ("μP", "u-μP")]


@pytest.mark.parametrize("losses, hollow", [
    ([2.3, 2.0, 2.1], False), ([2.0, 2.1, 2.2], True), ([2.2, 2.1, None], True)])
def test_a_star_is_hollow_at_the_edge_and_beside_divergence(losses, hollow, drawn):
    ax, = drawn({"mup": {64: curve(dict(zip(range(-9, -6), losses)))}}).axes
    star, = marks(ax, "*")
    assert (str(star.get_markerfacecolor()) == "white") == hollow


@pytest.mark.parametrize("losses", [
    parabola(-6.3), {-9: 2.3, -8: 2.0, -7: 2.05, -4: 9.0}, {-9: 2.0, -8: 2.1}, {-8: 2.0}])
def test_a_star_lies_on_its_curve_at_the_optimum(losses, drawn):
    ax, = drawn({"mup": {64: curve(losses)}}).axes
    (x,), (y,) = marks(ax, "*")[0].get_data()
    assert x == pytest.approx(optimum(curve(losses)).log2_lr)
    line = ax.lines[0].get_data()
    # The arc has 20 pieces, so its chord is nearer to the vertex than 1/100 of its depth, 0.25.
    assert y == pytest.approx(np.interp(x, *line), abs=2.5e-3)
    assert min(line[1]) == pytest.approx(y, abs=2.5e-3)
    assert [np.interp(at, *line) for at in losses] == pytest.approx(list(losses.values()))


def test_every_run_without_a_loss_is_a_cross_and_panels_share_the_axis_of_losses(drawn):
    groups = {"sp": {64: curve(parabola(-6)), 128: curve(parabola(-7) | {-3: None})},
              "mup": {64: curve(parabola(-6))}}
    axes = drawn(groups).axes
    assert axes[0].get_ylim() == axes[1].get_ylim() and axes[0].get_xlim() == axes[1].get_xlim()
    for ax, by_size in zip(axes, groups.values()):
        assert [x for mark in marks(ax, "x") for x in mark.get_xdata()] == [
            math.log2(p.lr) for points in by_size.values() for p in points if p.loss is None]
        assert len(marks(ax, "*")) == len(by_size)


def test_a_panel_without_a_common_lr_has_its_own_axis(drawn):
    axes = drawn({"mup": {64: curve(parabola(-6))},
                  "umup": {64: curve(parabola(0, range(-2, 3)))}}).axes
    assert axes[1].get_xlim()[0] > axes[0].get_xlim()[1]


def test_a_figure_without_any_loss_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="choose smaller ones to plot"):
        plot.loss_against_lr("width", {"mup": {64: curve({-8: None})}}, tmp_path / "plot.png")


def test_no_text_is_smaller_than_8_points(drawn):
    groups = {name: {64: curve(parabola(-6))} for name in "abcd"}
    texts = drawn(groups).findobj(matplotlib.text.Text)
    assert texts and min(text.get_fontsize() for text in texts) >= 8


# Tuned at the small width

def test_the_rival_divides_the_tuned_lr_by_the_width():
    grid = {64: curve({-8: 2.2, -7: 2.0, -6: 2.1}), 256: curve({-9: 1.7, -8: 1.8, -7: 1.9})}
    lr, unchanged = tuned_small.tuned("SP", grid)
    assert lr == 2**-7 and unchanged[256].loss == 1.9
    assert tuned_small.tuned(tuned_small.PER_WIDTH, grid)[1][256].loss == 1.7


def test_a_width_without_a_run_at_the_lr_is_left_out_and_the_table_says_so():
    grid = {64: curve({-8: 2.2, -7: 2.0, -6: 2.1}), 256: curve({-9: 1.7, -8: None})}
    assert tuned_small.tuned("SP", grid)[1][256] is None
    row = tuned_small.table({"SP": grid}).splitlines()[2]
    assert row.startswith("SP ") and row.endswith("no run") and "2.000" in row


# The committed figures

def test_every_committed_figure_is_small_and_is_shown():
    shown = "".join((ROOT / name).read_text() for name in ("README.md", "experiments/README.md"))
    for file in (ROOT / "experiments/figures").glob("*.png"):
        assert file.stat().st_size < 150_000 and f"figures/{file.name}" in shown, file.name


def test_the_rival_of_one_over_width_drifts_as_sp_does_plus_an_octave_per_doubling():
    (moves, *_) = summary.drifts().values()
    # Both from one curve: rounding alone separates them.
    assert moves[tuned_small.PER_WIDTH].octaves == pytest.approx(moves["SP"].octaves + 4, abs=1e-9)
