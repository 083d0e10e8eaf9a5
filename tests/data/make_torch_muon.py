"""Writes torch_muon.json beside this file: what torch.optim.Muon does to three small matrices in ten steps, in float64.

    python tests/data/make_torch_muon.py            (needs PyTorch >= 2.9; the tests only read the file)

PyTorch casts to bfloat16 inside its Newton-Schulz helper, which leaves two or three digits to compare. The helper is therefore
replaced by the same definition without the cast; momentum, Nesterov, decay, shape factor and their order stay PyTorch's own.
Weights are stored as PyTorch has them, (fan_out, fan_in): transpose everything to compare with tinymup's (fan_in, fan_out).
"""
import json
import pathlib

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
    torch.optim._muon._zeropower_via_newtonschulz = newton_schulz_float64
    rng = numpy.random.default_rng(SEED)
    # Rounded so that the file stays small: the numbers in it, not the draws, are the inputs.
    weights = {name: rng.standard_normal(shape).round(3) for name, shape in SHAPES.items()}
    gradients = {name: rng.standard_normal((STEPS, *shape)).round(3) for name, shape in SHAPES.items()}
    record = {
        "made_by": "tests/data/make_torch_muon.py", "torch": torch.__version__, "layout": "(fan_out, fan_in)",
        "newton_schulz": "float64 instead of bfloat16, five steps, coefficients (3.4445, -4.7750, 2.0315)",
        "settings": SETTINGS, "steps": STEPS, "seed": SEED,
        "weights": {name: w.tolist() for name, w in weights.items()},
        "gradients": {name: g.tolist() for name, g in gradients.items()},
        "runs": [{**variant, "final": trajectory(weights, gradients, variant)} for variant in VARIANTS],
    }
    path = pathlib.Path(__file__).with_name("torch_muon.json")
    path.write_text(json.dumps(record, separators=(",", ":")) + "\n")
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
