"""Writes torch_casts.json: PyTorch's float32 casts to fp8, fp16 and bf16, for `quantize`.

    python tests/data/make_torch_casts.py

For each format the file has the inputs (float32 values) and what the cast gives, null where it
overflowed to infinity or NaN. With torch 2.13 only the cast to E4M3 saturates, infinity included;
the others overflow from half a step beyond the maximum.
"""
import json
from pathlib import Path

import torch

DTYPES = {"fp8-e4m3": torch.float8_e4m3fn, "fp8-e5m2": torch.float8_e5m2,
          "fp16": torch.float16, "bf16": torch.bfloat16}


def inputs(dtype, random):
    """Values over the format's range and a little beyond, ties, and some of its own numbers."""
    info = torch.finfo(dtype)
    step = info.eps                                   # between neighbours in [1, 2)
    subnormal = info.smallest_normal * step
    low, high = torch.tensor(subnormal).log2(), torch.tensor(info.max).log2()
    exponents = (torch.empty(40).uniform_(-3, 2, generator=random)
                 + torch.linspace(low, high, 40))
    anywhere = 2**exponents.clamp(max=127.5) * torch.randn(40, generator=random).sign()
    signs = torch.tensor([1, -2, 4, -8, 0.5, -0.25, 16, -32])
    ties = (1 + step * (torch.arange(8) + 0.5)) * signs
    subnormals = subnormal * torch.tensor([0.25, 0.5, 0.75, 1, 1.5, 2.5, -0.5, -1.5, -3.3])
    edges = torch.tensor([0.0, -0.0, 1.0, -1.5, info.smallest_normal, info.max, -info.max])
    beyond = torch.tensor(info.max) * torch.tensor([1 + step / 8, 1.5, -4])
    return torch.cat([anywhere, ties, subnormals, edges, beyond]).float()


def main():
    """Writes the file."""
    random = torch.Generator().manual_seed(0)
    casts = {}
    for name, dtype in DTYPES.items():
        x = inputs(dtype, random)
        x = x[x.isfinite()]
        y = x.to(dtype).float().tolist()
        casts[name] = {"input": x.tolist(),
                       "cast": [value if abs(value) < float("inf") else None for value in y]}
    text = json.dumps({"torch": torch.__version__, "casts": casts}, allow_nan=False)
    path = Path(__file__).with_name("torch_casts.json")
    path.write_text(text.replace(', "', ',\n"') + "\n")


if __name__ == "__main__":
    main()
