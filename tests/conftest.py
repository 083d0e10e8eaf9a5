"""The repository's root on the path, so that `pytest` and `python -m pytest` both find the package."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
