"""Puts the repository's root on the path: `pytest` finds the package as `python -m pytest` does."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
