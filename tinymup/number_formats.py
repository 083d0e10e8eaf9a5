"""Low-precision number formats, simulated: an array is rounded to the numbers of a format and stays what it is, a float32 array.

Nothing gets faster. What can be seen is whether a parametrization still trains when its matrix products see 8-bit operands.
"""
from typing import NamedTuple

from .backend import xp


class Format(NamedTuple):
    """A binary floating-point format: value = ±1.mantissa · 2^(exponent − bias), subnormals at exponent 0."""

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


# FP8 as in the OCP 8-bit specification: E4M3 spends only S.1111.111 on NaN and has no infinity, hence 448 and not 240.
# (unit_scaling's own simulation of E4M3 has bias 8 and maximum 240: numbers made with it differ.)
FORMATS = {
    "fp8-e4m3": Format(4, 3, bias=7, max=448.0),
    "fp8-e5m2": Format(5, 2, bias=15, max=57344.0),
    "fp16": Format(5, 10, bias=15, max=65504.0),
    "bf16": Format(8, 7, bias=127, max=(2 - 2.0**-7) * 2.0**127),
}

# What --matmul-format names: (format of x and w, format of the incoming gradient dy). Gradients spread over more octaves than
# activations and need less precision, so FP8 gives them the wider format (unit_scaling's simulate_fp8, Aleph-Alpha's fp8_linear).
MATMUL_FORMATS = {
    "fp8": (FORMATS["fp8-e4m3"], FORMATS["fp8-e5m2"]),
    "bf16": (FORMATS["bf16"], FORMATS["bf16"]),
    "fp16": (FORMATS["fp16"], FORMATS["fp16"]),
}


def quantize(x, format):
    """The numbers of `format` nearest to x, ties to even, in x's own dtype (float32 or float64): a simulated cast.

    Saturates: beyond ±max, infinities included, it gives ±max. That is how FP8 casts are done in training; for bf16 and fp16,
    whose usual cast overflows to infinity, it is a simplification. NaN stays NaN, so a diverged run still shows.
    Signs, also of zeros, are kept. bf16's subnormals are float32's, which CuPy flushes to zero.
    """
    y = xp.clip(x, -format.max, format.max)
    exponent = xp.frexp(y)[1] - 1                                   # 2^exponent <= |y| < 2^(exponent+1)
    places = format.mantissa_bits - xp.maximum(exponent, 1 - format.bias)
    y = xp.rint(xp.ldexp(y, places, out=y), out=y)                  # slide the last kept bit to the units, round, slide back
    return xp.ldexp(y, -places, out=y)
