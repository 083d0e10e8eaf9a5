"""Initial parameters: the resolved table, drawn."""
from .backend import generator, to_device


def initialize(rows, seed, dtype):
    """A dict name → array, each N(mean, std²) as its row says.

    Every parameter has random numbers of its own, so that adding one does not change the others. They are drawn in float64:
    two parametrizations start from the same draw, and a float32 run from the rounded values of a float64 one.
    """
    return {row.name: to_device(row.mean + row.std * generator(seed, "init " + row.name).standard_normal(row.shape), dtype)
            for row in rows}
