"""u-μP's factors against the reference library's and the operations; all number formats."""
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tinymup import unit_scaling as us
from tinymup.number_formats import FORMATS, MATMUL_FORMATS, quantize

DATA = Path(__file__).parent / "data"
ALPHAS = (0.25, 0.5, 1, 2, 4)


# Factors

# Ratios of the outputs of the unit-scaling package 0.3.5 to those of the unscaled operations, at
# α = ALPHAS. Its SiLU has the factors of GELU.
@pytest.mark.parametrize("factor, wanted", [
    (us.gelu_factor, (1.938958, 1.850869, 1.766783, 1.728546, 1.716947)),
    (us.silu_gate_factor, (1.959639, 1.866066, 1.681793, 1.515717, 1.443341)),
])
def test_activation_factors_are_the_reference_librarys(factor, wanted):
    assert [factor(alpha) for alpha in ALPHAS] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("seq, head_dim, causal, wanted", [
    (64, 16, True, 3.841221), (256, 64, True, 6.744104), (1024, 64, True, 12.036951),
    (64, 16, False, 7.748119), (256, 64, False, 15.828315),
])
def test_attention_factors_are_the_reference_librarys(seq, head_dim, causal, wanted):
    assert us.attention_factor(1.0, head_dim, seq, causal) == pytest.approx(wanted, abs=1e-6)


def test_linear_factors_are_the_table_of_u_mup():
    assert us.linear_factors(64, 256, tokens=100) == pytest.approx((1 / 8, 1 / 8, 1 / 10))
    assert us.linear_factors(64, 256, tokens=100, constrained=False) == pytest.approx(
        (1 / 8, 1 / 16, 1 / 10))
    assert us.readout_factors(64, 256, tokens=100) == pytest.approx((1 / 64, 1 / 16, 1 / 10))
    assert us.lookup_factor(vocab=256, lookups=64) == pytest.approx(2)
    assert us.gain_factor(tokens=100) == pytest.approx(1 / 10)
    assert us.dlogits_factor(vocab=101) == pytest.approx(10.1)


RELU_LIMIT = math.sqrt(2 / (1 - 1 / math.pi))


def test_factors_have_the_stated_limits():
    assert us.gelu_factor(1e-6) == pytest.approx(2)
    assert us.gelu_factor(1e6) == pytest.approx(RELU_LIMIT)
    assert us.relu_factor(0.1) == us.relu_factor(10) == pytest.approx(RELU_LIMIT)
    assert us.silu_gate_factor(1e-6) == pytest.approx(2)
    assert us.silu_gate_factor(1e6) == pytest.approx(math.sqrt(2))
    assert us.attention_factor(1e-6, 16, 64, causal=False) == pytest.approx(8)
    assert us.attention_factor(1e-6, 16, 64) == pytest.approx(math.sqrt(64 / math.log(64)))
    assert us.attention_factor(1e6, 16, 64) == pytest.approx(1)
    assert us.attention_factor(1.0, 16, seq=1) == 1   # the reference library raises: ln(1) = 0


def gaussian_mean(values, z):
    """E of values(z), z ~ N(0, 1), on a fine grid."""
    return (values * np.exp(-z * z / 2)).sum() / np.exp(-z * z / 2).sum()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_activations_have_unit_std_after_their_factor_and_not_before(alpha):
    z = np.linspace(-12, 12, 20001)
    normal_cdf = np.array([0.5 * (1 + math.erf(alpha * v / 2**0.5)) for v in z])
    gelu, silu, relu = z * normal_cdf, z / (1 + np.exp(-alpha * z)), np.maximum(z, 0)
    std_gelu, std_relu = (math.sqrt(gaussian_mean(y * y, z) - gaussian_mean(y, z)**2)
                          for y in (gelu, relu))
    std_gate = math.sqrt(gaussian_mean(silu * silu, z))   # times an independent x of mean 0
    for std, factor in ((std_gelu, us.gelu_factor), (std_relu, us.relu_factor),
                        (std_gate, us.silu_gate_factor)):
        # The factors are a fit. The worst is GELU at α = 1, 3.9 % off.
        assert abs(std * factor(alpha) - 1) < 0.05
        assert std < 0.7


@pytest.mark.parametrize("causal", (True, False))
@pytest.mark.parametrize("alpha", ALPHAS)
def test_attention_has_nearly_unit_std_after_its_factor(alpha, causal):
    seq, head_dim = 128, 16
    q, k, v = np.random.default_rng(0).standard_normal((3, 64, seq, head_dim))
    logits = alpha * q @ k.swapaxes(-1, -2) / head_dim
    if causal:
        logits += np.triu(np.full((seq, seq), -np.inf), 1)
    weights = np.exp(logits)
    y = weights @ v / weights.sum(-1, keepdims=True)
    assert y.std() < 0.4
    # the factor is a fit; seen: 0.973 to 1.081
    assert 0.9 < y.std() * us.attention_factor(alpha, head_dim, seq, causal) < 1.1


@pytest.mark.parametrize("vocab", (2, 11, 256))
def test_logit_gradient_has_unit_std_at_the_uniform_prediction(vocab):
    dlogits = np.full((vocab, vocab), 1 / vocab) - np.eye(vocab)
    assert dlogits.std() * us.dlogits_factor(vocab) == pytest.approx(1)


# The residual stream

def variance_shares(pairs):
    """What embedding and branches contribute to the variance at the end, for x ← a·f(x) + b·x."""
    shares = [1.0]
    for a, b in pairs:
        shares = [share * b**2 for share in shares] + [a**2]
    return shares


def test_embedding_attention_and_feed_forward_have_equal_shares_of_the_variance_by_default():
    assert variance_shares(us.branch_factors(depth=4)) == pytest.approx([1 / 3] + 8 * [1 / 12])


def test_shares_of_the_variance_follow_the_two_alphas():
    shares = variance_shares(us.branch_factors(depth=4, alpha_res=0.5, alpha_res_ratio=2))
    assert shares == pytest.approx([2 / 3] + 4 * [1 / 15, 1 / 60])


@pytest.mark.parametrize("depth", (1, 2, 16))
@pytest.mark.parametrize("alpha_res, ratio", ((1, 1), (0.5, 2), (3, 0.25)))
def test_branch_factors_are_the_papers_closed_form(depth, alpha_res, ratio):
    alpha_ffn2 = 2 * alpha_res**2 / (1 + ratio**2)
    alpha_attention2 = ratio**2 * alpha_ffn2
    pairs = us.branch_factors(depth, alpha_res, ratio)
    assert len(pairs) == 2 * depth
    for i, (a, b) in enumerate(pairs):
        alpha2 = alpha_attention2 if i % 2 == 0 else alpha_ffn2
        tau2 = alpha2 / (depth + (i + 1) // 2 * alpha_attention2 + i // 2 * alpha_ffn2)
        assert a == pytest.approx(math.sqrt(tau2 / (1 + tau2)), rel=1e-13)
        assert b == pytest.approx(math.sqrt(1 / (1 + tau2)), rel=1e-13)
        assert a * a + b * b == pytest.approx(1, rel=1e-14)   # the stream keeps unit variance


# Number formats

def decode(byte, format):
    """The number that a byte means, from the definition alone; None for infinity and NaN."""
    sign = -1.0 if byte >> 7 else 1.0
    exponent = byte >> format.mantissa_bits & (1 << format.exponent_bits) - 1
    mantissa = byte & (1 << format.mantissa_bits) - 1
    if format.exponent_bits == 4 and byte & 0x7F == 0x7F:
        return None
    if format.exponent_bits == 5 and exponent == 31:
        return None
    fraction = mantissa / 2**format.mantissa_bits
    if exponent == 0:
        return sign * fraction * 2.0**(1 - format.bias)
    return sign * (1 + fraction) * 2.0**(exponent - format.bias)


def numbers(format, bytes):
    """Those of the bytes that are finite numbers of an 8-bit format, in the order given."""
    values = [decode(byte, format) for byte in bytes]
    return np.array([value for value in values if value is not None])


def assert_same(got, wanted):
    """Equal, with the sign of zero."""
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(wanted))


fp8 = pytest.mark.parametrize("format", (FORMATS["fp8-e4m3"], FORMATS["fp8-e5m2"]),
                              ids=("e4m3", "e5m2"))
floats = pytest.mark.parametrize("dtype", (np.float32, np.float64))


@fp8
@floats
def test_every_fp8_number_is_a_fixed_point(format, dtype):
    every = numbers(format, range(256)).astype(dtype)
    assert len(every) == (254 if format.exponent_bits == 4 else 248)
    assert_same(quantize(every, format), every)
    assert every.max() == format.max
    assert every[every > 0].min() == format.min_subnormal
    assert decode(1 << format.mantissa_bits, format) == format.min_normal


@fp8
@floats
def test_fp8_rounds_to_nearest_and_ties_to_even(format, dtype):
    # in the order of their bit patterns 0, 1, 2, …, of which every second one is even
    every = numbers(format, range(128)).astype(dtype)
    lower, upper = every[:-1], every[1:]
    middle = (lower + upper) / 2
    to_even = np.where(np.arange(len(lower)) % 2 == 0, lower, upper)
    for sign in (1, -1):
        assert_same(quantize(sign * middle, format), sign * to_even)
        assert_same(quantize(sign * np.nextafter(middle, dtype(0)), format), sign * lower)
        assert_same(quantize(sign * np.nextafter(middle, dtype(np.inf)), format), sign * upper)
    # truncation, or ties away from zero, would be seen
    assert not np.array_equal(to_even, lower) and not np.array_equal(to_even, upper)


@pytest.mark.parametrize("name", FORMATS)
@floats
def test_values_beyond_the_maximum_saturate_and_nan_stays(name, dtype):
    largest = FORMATS[name].max
    beyond = np.nextafter(dtype(largest), dtype(np.inf))
    x = np.array([largest, beyond, np.inf, -largest, -np.inf, 0.0, -0.0, np.nan], dtype)
    y = quantize(x, FORMATS[name])
    assert y.dtype == dtype
    wanted = [largest, largest, largest, -largest, -largest, 0.0, -0.0]
    assert_same(y[:-1], np.array(wanted, dtype))
    assert np.isnan(y[-1])


def test_fp16_is_numpys_float16():
    every = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    every = every[np.isfinite(every)]
    assert_same(quantize(every, FORMATS["fp16"]), every)
    exponents = np.arange(20000) % 45 - 31
    x = np.ldexp(np.random.default_rng(0).standard_normal(20000), exponents).astype(np.float32)
    x = x[abs(x) < 65504]
    assert_same(quantize(x, FORMATS["fp16"]), x.astype(np.float16).astype(np.float32))


def test_bf16_is_the_upper_half_of_float32():
    every = (np.arange(65536, dtype=np.uint32) << 16).view(np.float32)
    every = every[np.isfinite(every)]
    assert_same(quantize(every, FORMATS["bf16"]), every)
    x = np.random.default_rng(0).integers(0, 2**32, 20000, dtype=np.uint32)
    x = x[abs(x.view(np.float32)) < FORMATS["bf16"].max]   # drops NaN as well
    rounded = x + 0x7FFF + (x >> 16 & 1) & 0xFFFF0000      # nearest even, on the bit pattern
    assert_same(quantize(x.view(np.float32), FORMATS["bf16"]),
                rounded.astype(np.uint32).view(np.float32))


@pytest.mark.parametrize("name", FORMATS)
def test_quantize_agrees_with_torchs_casts(name):
    casts = json.loads((DATA / "torch_casts.json").read_text())["casts"][name]
    x, largest = np.array(casts["input"], np.float32), FORMATS[name].max
    # null: torch's cast overflowed to infinity or NaN, where ours saturates
    wanted = [math.copysign(largest, value) if cast is None else cast
              for value, cast in zip(casts["input"], casts["cast"])]
    assert_same(quantize(x, FORMATS[name]), np.array(wanted, np.float32))


def test_quantize_leaves_its_argument_alone_and_takes_any_layout():
    x = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    before = x.copy()
    y = quantize(x.T, FORMATS["fp8-e4m3"])
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(y, quantize(np.ascontiguousarray(x.T), FORMATS["fp8-e4m3"]))


def test_matmul_formats_give_the_gradient_at_least_the_range_of_the_operands():
    for operands, gradient in MATMUL_FORMATS.values():
        assert gradient.max >= operands.max and gradient.min_subnormal <= operands.min_subnormal
    assert MATMUL_FORMATS["fp8"] == (FORMATS["fp8-e4m3"], FORMATS["fp8-e5m2"])
