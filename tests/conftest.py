"""Puts the repository's root on the path: `pytest` finds the package as `python -m pytest` does."""
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
# A shell starts its background jobs with Ctrl-C ignored. Tests that interrupt a process would wait
# for ever, since it inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
