"""The gallery shows what the programs print from the committed results."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REDRAWN = ["coord_check", "corpora", "depth_transfer", "drift_causes", "feature_learning",
           "long_transfer", "low_precision", "lr_transfer", "mlp_sgd", "muon_transfer",
           "muon_vs_adamw", "mutransfer", "newton_schulz", "qk_clip", "rank_transfer",
           "tensor_rms", "umup_alphas", "umup_factors", "umup_rival", "umup_transfer",
           "what_transfers", "wide_transfer", "replay"]
QUOTED = ["corpora", "depth_transfer", "drift_causes", "feature_learning", "long_transfer",
          "low_precision", "lr_transfer", "mlp_sgd", "muon_transfer", "muon_vs_adamw",
          "mutransfer", "qk_clip", "rank_transfer", "umup_alphas", "umup_factors", "umup_rival",
          "umup_transfer", "what_transfers", "wide_transfer", "replay"]   # others: own tables


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """{experiment: its lines with --redraw, in a copy of the project so that no figure changes}"""
    copy = tmp_path_factory.mktemp("copy")
    for folder in ("experiments", "tinymup"):
        shutil.copytree(ROOT / folder, copy / folder)
    lines = {}
    for name in REDRAWN:
        done = subprocess.run([sys.executable, copy / f"experiments/{name}.py", "--redraw"],
                              capture_output=True, encoding="utf-8")
        assert done.returncode == 0, f"{name}: {done.stderr}"
        lines[name] = [line.rstrip() for line in done.stdout.splitlines()]
    sizes = [figure.stat().st_size for figure in copy.glob("experiments/figures/*.png")]
    assert len(sizes) >= len(REDRAWN) and max(sizes) < 150_000
    return lines


def blocks(name):
    """The code blocks of an experiment's section, as lists of lines, empty ones left out."""
    gallery = (ROOT / "experiments/README.md").read_text(encoding="utf-8")
    section, = [s for s in re.split(r"^## ", gallery, flags=re.M)[1:]
                if f"figures/{name}.png" in s or f"experiments/{name}.py`" in s]
    return [[line.rstrip() for line in block.splitlines() if line]
            for block in re.findall(r"^```\n(.*?)^```", section, re.M | re.S)]


def missing(quoted, lines):
    """The lines of a block that do not follow one another in a program's lines."""
    rest = iter(lines)
    return [line for line in quoted if line not in rest]      # `in` goes on where it has stopped


@pytest.mark.parametrize("name", QUOTED)
def test_a_block_of_the_gallery_is_output_of_its_program(name, printed):
    assert blocks(name) and not [missing(block, printed[name]) for block in blocks(name)
                                 if missing(block, printed[name])]


def test_an_edited_number_and_swapped_lines_are_noticed(printed):
    block = blocks("lr_transfer")[0]
    assert missing([line.replace("2^-12", "2^-13") for line in block], printed["lr_transfer"])
    assert missing(block[:2][::-1], printed["lr_transfer"])


STARTS = """
import sys
from pathlib import Path
sys.path.insert(0, "experiments")
import transfer
folder = Path(sys.argv[1])
transfer.kernel = lambda: "Haswell"
for commit, trains in [("a", True), ("b", False), ("b", True), ("a", True)]:
    transfer.commit = lambda: commit
    print(transfer.origin(folder, trains))
(folder / "origin").unlink()
(folder / "results.jsonl").write_text("a run of an unknown commit")
print(transfer.origin(folder, True))
"""


def test_a_csv_names_every_commit_that_trained_some_of_its_runs_and_no_other(tmp_path):
    done = subprocess.run([sys.executable, "-c", STARTS, tmp_path], cwd=ROOT, check=True,
                          capture_output=True, encoding="utf-8")
    a, b = "commit a on BLAS kernel Haswell", "commit b on BLAS kernel Haswell"
    *named, unknown = done.stdout.splitlines()
    assert named == [a, a, f"{a}; {b}", f"{a}; {b}"]
    assert unknown == f"some runs are of a commit and a BLAS kernel that were not recorded; {a}"
