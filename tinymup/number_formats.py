"""Low-precision number formats, simulated: values are rounded to a format but stay float32 arrays.

This saves no time. It shows whether a parametrization still trains if the operands of its matrix
products have 8 or 16 bits. This is the last file of the core."""
from typing import NamedTuple

from .backend import xp


class Format(NamedTuple):
    """A binary floating-point format, ±1.mantissa · 2^(exponent − bias), with subnormal numbers."""
    exponent_bits: int
    mantissa_bits: int
    bias: int
    max: float

    @property
    def min_normal(self):
        """The smallest number with a leading 1."""
        return 2.0**(1 - self.bias)

    @property
    def min_subnormal(self):
        """The smallest number above 0."""
        return self.min_normal * 2.0**-self.mantissa_bits


# FP8 as in the OCP 8-bit specification. E4M3 has no infinity and spends only S.1111.111 on NaN, so
# its maximum is 448. (graphcore-research/unit-scaling: bias 8, maximum 240, stochastic rounding.)
FORMATS = {
    "fp8-e4m3": Format(4, 3, bias=7, max=448.0),
    "fp8-e5m2": Format(5, 2, bias=15, max=57344.0),
    "fp16": Format(5, 10, bias=15, max=65504.0),
    "bf16": Format(8, 7, bias=127, max=(2 - 2.0**-7) * 2.0**127),
}

# (format of x and w, format of the incoming gradient dy). Gradients have more dynamic range and
# need less precision, so FP8 gives them the wider format (as unit-scaling's simulate_fp8 does).
MATMUL_FORMATS = {
    "fp8": (FORMATS["fp8-e4m3"], FORMATS["fp8-e5m2"]),
    "bf16": (FORMATS["bf16"], FORMATS["bf16"]),
    "fp16": (FORMATS["fp16"], FORMATS["fp16"]),
}


def with_formats(mult, rows, hyper):
    """{name: `ops.Mult` with the formats of hyper} of the matrices whose products are rounded:
    those that their specs name, or all, the readout included."""
    names = [row.name for row in rows if row.spec.rounded]
    if hyper.rounded == "all":
        names = [row.name for row in rows if len(row.shape) == 2 and not row.spec.lookups]
        names.append("output")                                # has no row if it is tied
    formats = MATMUL_FORMATS[hyper.matmul_format]
    return {name: mult[name]._replace(formats=formats) for name in names}


def quantize(x, format):
    """The nearest number of the format, ties to even, in the dtype of x (float32 or float64).
    Beyond ±max it gives ±max, as FP8 casts in training do; the usual casts to bf16 and fp16 give
    infinity there. NaN stays NaN, and signs are kept, also of zeros. CuPy flushes the subnormal
    numbers of bf16, which are those of float32, to zero."""
    y = xp.clip(x, -format.max, format.max)
    exponent = xp.frexp(y)[1] - 1                             # 2^exponent <= |y| < 2^(exponent+1)
    places = format.mantissa_bits - xp.maximum(exponent, 1 - format.bias)
    y = xp.rint(xp.ldexp(y, places, out=y), out=y)            # the last kept bit becomes the unit
    return xp.ldexp(y, -places, out=y)
