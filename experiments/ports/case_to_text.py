"""Writes a case as the numbers that port.c reads: `python experiments/ports/case_to_text.py CASE`.

Its lines: sizes; factors and settings; schedule; Newton–Schulz's coefficients; branches; for each
parameter its name and numbers; the token ids of all steps.
"""
import json
import sys


def flat(x):
    """Numbers and words of nested lists and dicts, in order. null (no eps, no clip) is 0."""
    if isinstance(x, (list, dict)):
        return [leaf for item in (x.values() if isinstance(x, dict) else x) for leaf in flat(item)]
    return [x if isinstance(x, str) else +(x or 0)]


case = json.load(open(sys.argv[1]))
c, run = case["config"], case["resolved"]
s, o, parameters = run["scales"], run["optimizer"], run["parameters"]
if c["model"] != "transformer":
    sys.exit("port.c has no " + c["model"])
triples = o["newton_schulz"] or []
muons = [i for i, p in enumerate(parameters) if p["optimizer"] == "muon"]
dlogits = s["dlogits"] or s["logits"] / (c["batch"] * c["seq"])
fresh = 1 - o["momentum"] if o["momentum_form"] == "ema" else 1

for line in (
        [[c[name] for name in ("steps", "batch", "seq", "width", "depth", "head_dim")],
         c["ffn"] == "swiglu", len(triples), len(parameters), max(muons, default=0)],
        [[s["attention"]] * 3, [s["attention_out"]] * 3, s["logits"], dlogits, 0, s["readout"],
         s["activation"], s["activation_alpha"], o["clip"], o["betas"], o["momentum"],
         o["nesterov"], fresh, o["newton_schulz_safety"], o["qk_clip_threshold"]],
        run["schedule"], triples, s["branches"],
        *([p["name"], ([1] + p["shape"])[-2:], p["orthogonalized_heads"],
           [p[cell] for cell in ("init_mean", "init_std", "lr", "eps", "shrink_per_step", "mult_y",
                                 "mult_dx", "mult_dw")], p["shape_factor"] or 1]
          for p in parameters),
        case["ids"]):
    print(*flat(line))
