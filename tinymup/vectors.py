"""`python -m tinymup.vectors check CASE.json MINE.json`: the numbers of a port, checked."""
from .lab.vectors import main

raise SystemExit(main())
