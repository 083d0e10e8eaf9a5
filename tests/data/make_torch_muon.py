"""Writes torch_muon.json: ten steps of torch.optim.Muon on three small matrices, in float64.

    python tests/data/make_torch_muon.py            (needs PyTorch 2.9 or later)

PyTorch casts to bfloat16 in its Newton–Schulz function, which leaves two or three digits to
compare. So the function is replaced by the same definition without the cast. Momentum, Nesterov,
weight decay, shape factor and their order remain PyTorch's. It stores weights as (fan_out, fan_in),
the transpose of tinymup's.
"""
import json
from pathlib import Path

import numpy
import torch

SHAPES = {"wide": (6, 10), "tall": (10, 6), "square": (8, 8)}
STEPS, SEED = 10, 0
SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
VARIANTS = [{"adjust_lr_fn": rule, "nesterov": nesterov}
            for rule in ("original", "match_rms_adamw") for nesterov in (True, False)]


def newton_schulz_float64(grad, ns_coefficients, ns_steps, eps):
    """torch.optim._muon._zeropower_via_newtonschulz without its cast to bfloat16."""
    assert grad.dtype == torch.float64
    a, b, c = ns_coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if grad.size(0) > grad.size(1) else x


def trajectory(weights, gradients, variant):
    """The weights after STEPS steps, by name."""
    parameters = {name: torch.nn.Parameter(torch.tensor(w)) for name, w in weights.items()}
    optimizer = torch.optim.Muon(parameters.values(), **SETTINGS, **variant)
    for step in range(STEPS):
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(gradients[name][step])
        optimizer.step()
    return {name: parameter.detach().numpy().tolist() for name, parameter in parameters.items()}


def main():
    """Writes the file."""
    torch.optim._muon._zeropower_via_newtonschulz = newton_schulz_float64
    rng = numpy.random.default_rng(SEED)
    # rounded to keep the file small; the numbers in the file are the inputs
    weights = {name: rng.standard_normal(shape).round(3) for name, shape in SHAPES.items()}
    gradients = {name: rng.standard_normal((STEPS, *shape)).round(3)
                 for name, shape in SHAPES.items()}
    record = {
        "made_by": "tests/data/make_torch_muon.py", "torch": torch.__version__,
        "layout": "(fan_out, fan_in)",
        "newton_schulz": "float64 instead of bfloat16, five steps, "
                         "coefficients (3.4445, -4.7750, 2.0315)",
        "settings": SETTINGS, "steps": STEPS, "seed": SEED,
        "weights": {name: w.tolist() for name, w in weights.items()},
        "gradients": {name: g.tolist() for name, g in gradients.items()},
        "runs": [{**variant, "final": trajectory(weights, gradients, variant)}
                 for variant in VARIANTS],
    }
    path = Path(__file__).with_name("torch_muon.json")
    path.write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
