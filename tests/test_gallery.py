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
           "what_transfers", "wide_transfer"]
QUOTED = ["corpora", "depth_transfer", "drift_causes", "long_transfer", "low_precision",
          "lr_transfer", "mlp_sgd", "muon_transfer", "muon_vs_adamw", "mutransfer", "qk_clip",
          "rank_transfer", "umup_alphas", "umup_factors", "umup_rival", "umup_transfer",
          "what_transfers", "wide_transfer"]   # the others have their own tables


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
        assert (copy / f"experiments/figures/{name}.png").stat().st_size < 150_000
        lines[name] = [line.rstrip() for line in done.stdout.splitlines()]
    return lines


def blocks(name):
    """The lines of the code blocks of an experiment's section, empty ones left out."""
    gallery = (ROOT / "experiments/README.md").read_text(encoding="utf-8")
    section, = [s for s in re.split(r"^## ", gallery, flags=re.M) if f"figures/{name}.png" in s]
    return [line.rstrip() for block in re.findall(r"^```\n(.*?)^```", section, re.M | re.S)
            for line in block.splitlines() if line]


@pytest.mark.parametrize("name", QUOTED)
def test_a_block_of_the_gallery_is_output_of_its_program(name, printed):
    quoted = blocks(name)
    assert quoted and not [line for line in quoted if line not in printed[name]]


def test_an_edited_number_is_noticed(printed):
    edited = blocks("lr_transfer")[1].replace("2^-12", "2^-13")
    assert edited not in printed["lr_transfer"]
