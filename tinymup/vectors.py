"""`python -m tinymup.vectors check CASE.json MINE.json`: the numbers of a port, checked."""
from .lab.terminal import start

start()
from .lab.vectors import main  # noqa: E402

raise SystemExit(main())
