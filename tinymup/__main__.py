"""`python -m tinymup`: the scaling tables, symbolic or resolved."""
from .lab.terminal import start

start()
from .lab.tables import main  # noqa: E402

main()
