"""tinymup in PyTorch: trains the network of a case of tests/vectors and writes the case's digests,
`python experiments/ports/port_torch.py tests/vectors/CASE.json MINE.json`, in float64.
Needs torch (2.13). Claims every case with a config; not ops.json, formats.json, optimizers.json,
and not zero_readout, zero_query, matmul_format. Multipliers are parametrizations of PyTorch's own
layers. The tables below and a base model give each parameter's numbers. Only the schedule and
Newton–Schulz's coefficients are read from the case."""
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

# (init std, multiplier, SGD lr, AdamW lr) of each role. i and o are its fan_in and fan_out relative
# to the base model; under u-μP they are absolute. AdamW's ε is the quotient of the last two. "data"
# is every role without a row of its own, but for scalars, whose cells are all 1.
TABLES = {
    "sp": lambda i, o: {"data": (1, 1, 1, 1), "hidden": (i**-0.5, 1, 1, 1),
                        "output": (i**-0.5, 1, 1, 1), "tied": (o**-0.5, o**0.5, 1, 1)},
    "ntk": lambda i, o: {"data": (1, 1, 1, o**-0.5), "hidden": (1, i**-0.5, 1, (i * o)**-0.5),
                         "output": (1, i**-0.5, 1, i**-0.5)},
    "mup": lambda i, o: {"data": (1, 1, o, 1), "hidden": (i**-0.5, 1, o / i, 1 / i),
                         "output": (1, 1 / i, i, 1)},
    "mup-table3": lambda i, o: TABLES["mup"](i, o) | {"output": (1 / i, 1, 1 / i, 1 / i)},
    "mup-table9": lambda i, o: TABLES["mup"](i, o) | {"data": (o**-0.5, o**0.5, 1, o**-0.5),
                                                      "output": (i**-0.5, i**-0.5, 1, i**-0.5)},
    "umup": lambda i, o: {"data": (1, 1, 1, 1), "embedding": (1, 1, o**-0.5, o**-0.5),
                          "input": (1, i**-0.5, 1, 1), "output": (1, 1 / i, 1, 1),
                          "hidden": (1, i**-0.5, i**-0.5, i**-0.5)}}
# Exponents of the depth ratio L in the branch weight, and in the SGD and the AdamW lr of a branch.
DEPTH_RULES = {"none": (0, 0, 0), "depth-mup": (-0.5, 0, -0.5), "completep": (-1, 1, 0),
               "umup": (0, -0.5, -0.5)}
SHAPE_FACTORS = {
    "spectral": lambda i, o: (o / i)**0.5, "keller": lambda i, o: max(1, o / i)**0.5,
    "moonlight": lambda i, o: 0.2 * max(i, o)**0.5, "none": lambda i, o: 1.0}

def role_of(name, c):
    if name.endswith(("bias", "norm")):
        return "scalar" if name == "output.bias" else "vector"
    embedding = "scalar" if c.model == "mlp" else "tied" if c.tied else "embedding"
    return {"embedding": embedding, "input": "input", "output": "output"}.get(name, "hidden")

def cells(role, i, o, c):
    table = {"scalar": (1, 1, 1, 1)} | TABLES[c.param](i, o)
    return table.get(role, table["data"])

def ours(name, x):
    """x with shape (fan_in, fan_out). nn.Linear stores the transpose, nn.Embedding does not."""
    return x if x.ndim == 1 or name == "embedding" else x.T

def resolve(name, p, base_p, c):
    """(optimizer, its parameter group, mean, std, factors on y, dx and dw) of a parameter."""
    role, unit, branch = role_of(name, c), c.param == "umup", name.startswith("block")
    (fan_in, fan_out), base_fans = ((1, *ours(name, x).shape)[-2:] for x in (p, base_p))
    base_in, base_out = (1, 1) if unit else base_fans
    init, a, sgd, adamw = cells(role, fan_in / base_in, fan_out / base_out, c)
    base_std = {"vector": 1, "scalar": 1, "embedding": 1, "tied": base_out}.get(role, base_in)**-0.5
    y = a * {"embedding": c.embed_mult, "tied": c.embed_mult / base_std,
             "output": c.output_mult}.get(role, 1.0)
    factors = unit_factors(name, y, fan_in, fan_out, c) if unit else (y, y, y)
    _, depth_sgd, depth_adamw = (c.depth_ratio**e if branch else 1.0 for e in c.depth_exponents)
    kind, base_lr, group = c.optimizer.removesuffix("clip"), c.lr, {"params": [p], "heads": 1}
    if kind == "muon" and role != "hidden":
        kind, base_lr = "adamw", c.adam_lr
    if kind == "muon":
        if c.muon_per_head and name.endswith((".query", ".key", ".value")):
            group["heads"], fan_out = fan_out // c.head_dim, c.head_dim
            base_out = 1 if unit else c.base_head_dim
        base_s = SHAPE_FACTORS[c.muon_scale](base_in, base_out)   # here lr includes s
        per_lr = base_s * (fan_out / base_out / (fan_in / base_in))**0.5 / a * depth_adamw
    else:
        per_lr = sgd * depth_sgd if kind == "sgd" else adamw * depth_adamw
        group["eps"] = c.eps * adamw / sgd * depth_adamw / depth_sgd
    # AdamW and Muon multiply weight_decay by lr. SGD would add it to the gradient.
    shrink = c.weight_decay * (base_lr if c.decay_form == "coupled" else 1.0)
    group["peak"] = base_lr * per_lr
    group["decay" if kind == "sgd" else "weight_decay"] = shrink / group["peak"]
    std = init * base_std * c.init_scale * (not name.endswith(("bias", "norm")))
    return kind, group, init * name.endswith("norm"), std, factors

def unit_factors(name, y, fan_in, fan_out, c):
    """u-μP's factors on y, dx, dw. dx = y but in gate, up, down (each has the other's), readout."""
    rows, inside = c.batch * c.seq, name.endswith((".gate", ".up", ".down", "output"))
    per_row = fan_in / (8 if c.model == "mlp" else 1) if name == "embedding" else 1.0
    return y, fan_out**-0.5 if inside else y, (per_row / rows)**0.5

def add_factors(c):
    """The numbers of the network that belong to no parameter, as attributes of c."""
    c.depth_exponents = DEPTH_RULES["umup" if c.param == "umup" else c.depth_rule]
    c.depth_ratio = c.depth / (1 if c.param == "umup" else c.base_depth or c.depth)
    weight, ratio = c.depth_ratio**c.depth_exponents[0], c.width / (c.base_width or c.width)
    c.branches = 2 * c.depth * [(1.0, weight, weight, 1.0)]       # skip, amount, enter, leave
    base = (c.base_head_dim or c.head_dim) if "mup" in c.param else c.head_dim
    c.attention = c.attn_mult * base**0.5 / c.head_dim
    c.attention_out = c.activation = c.dlogits = 1.0
    if c.tied:                               # the effective readout starts as an untied one would
        init, a, *_ = cells("output", ratio, 1, c)
        c.readout = c.output_mult * a * init / cells("tied", 1, ratio, c)[0]
    if c.param != "umup":
        return
    relu, a = (2 / (1 - 1 / math.pi))**0.5, (1 if c.ffn == "swiglu" else 0.25) / c.alpha_ffn**2
    a, b = 1 / (1 + a), 1 / (1 + 4 * c.head_dim / c.alpha_attn**2)
    c.activation = {"relu": relu, "gelu": 2**(1 - a) * relu**a, "swiglu": 2**(1 - a / 2)}[c.ffn]
    c.attention, flat = c.alpha_attn / c.head_dim, math.log(c.seq) / c.seq if c.seq > 1 else 1.0
    c.attention_out = flat**((b - 1) / 2)
    c.dlogits = c.batch * c.seq * 256 / 255**0.5                  # cross_entropy divides by N
    ffn, stream, c.branches = 2 * c.alpha_res**2 / (1 + c.alpha_res_ratio**2) / c.depth, 1.0, []
    for branch in [c.alpha_res_ratio**2 * ffn, ffn] * c.depth:
        amount, skip = (branch / (stream + branch))**0.5, (stream / (stream + branch))**0.5
        c.branches.append((skip, amount, 1.0, amount))
        stream += branch

class Scale(torch.autograd.Function):
    """y = forward · x, dx = backward · dy: the chain rule if the two are equal."""
    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.factor = backward
        return x * forward
    @staticmethod
    def backward(ctx, dy):
        return dy * ctx.factor, None, None
scale = Scale.apply

class Multiplier(nn.Module):
    """A parametrization by which a layer sees y·w, and w the gradient of the layer times dw."""
    def __init__(self, y, dw):
        super().__init__()
        self.y, self.dw = y, dw
    def forward(self, w):
        return scale(w, self.y, self.dw)

def multiply(module, key, y, dx, dw):
    nn.utils.parametrize.register_parametrization(module, key, Multiplier(y, dw))
    if dx != y:
        module.register_forward_pre_hook(lambda _, inputs: scale(inputs[0], 1.0, dx / y))

def activation(x, c):
    f = {"relu": F.relu, "swiglu": F.silu, "gelu": lambda z: F.gelu(z, approximate="tanh")}[c.ffn]
    return f(c.alpha_ffn * x) * (c.activation / c.alpha_ffn)      # silu(αx)/α = x σ(αx)

def rope(x):
    half = x.shape[-1] // 2                                       # x (B, H, T, D)
    angle = torch.outer(torch.arange(float(x.shape[-2])), 10000.0**-(torch.arange(half) / half))
    z = torch.complex(*x.split(half, -1)) * torch.exp(1j * angle)
    return torch.cat([z.real, z.imag], -1)

class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, wide = c, c.width * 8 // 3 // 8 * 8 if c.ffn == "swiglu" else 4 * c.width
        self.attention_norm = nn.RMSNorm(c.width, 1e-6, c.gains)
        for name in ("query", "key", "value", "attention_out"):
            self.add_module(name, nn.Linear(c.width, c.width, c.biases))
        self.ffn_norm = nn.RMSNorm(c.width, 1e-6, c.gains)
        for name in ("gate", "up") if c.ffn == "swiglu" else ("up",):
            self.add_module(name, nn.Linear(c.width, wide, c.biases))
        self.down = nn.Linear(wide, c.width, c.biases)
        self.attention_logits = nn.Identity()                     # shows them to hooks

    def attention(self, x):
        c, n = self.c, self.attention_norm(x)
        q, k, v = (layer(n).unflatten(-1, (-1, c.head_dim)).transpose(1, 2)
                   for layer in (self.query, self.key, self.value))
        q, k = rope(q), rope(k)
        self.attention_logits(c.attention * k.detach() @ q.detach().mT)   # (B, H, key, query)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=c.attention)
        return self.attention_out(c.attention_out * y.transpose(1, 2).flatten(2))

    def ffn(self, x):
        n, gated = self.ffn_norm(x), self.c.ffn == "swiglu"
        f = activation(self.gate(n) if gated else self.up(n), self.c)
        return self.down(f * self.up(n) if gated else f)

class Transformer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, self.embedding = c, nn.Embedding(256, c.width)
        for i in range(c.depth):
            self.add_module(f"block{i}", Block(c))
        self.final_norm = nn.RMSNorm(c.width, 1e-6, c.gains)
        self.output = None if c.tied else nn.Linear(c.width, 256, c.biases)

    def forward(self, ids):
        c, x = self.c, self.embedding(ids)
        for i, (skip, amount, enter, leave) in enumerate(c.branches):
            block = self.get_submodule(f"block{i // 2}")
            y = (block.ffn if i % 2 else block.attention)(scale(x, 1.0, leave))
            x = skip * x + scale(y, amount, enter)
        x = self.final_norm(x)
        return self.output(x) if self.output else F.linear(
            x, c.readout * self.embedding.parametrizations.weight.original)

class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, self.embedding, self.input = c, nn.Embedding(256, 32), nn.Linear(8 * 32, c.width)
        for i in range(c.depth):
            self.add_module(f"hidden{i}", nn.Linear(c.width, c.width))
        self.output = nn.Linear(c.width, 256)

    def forward(self, ids):
        x = self.input(self.embedding(F.pad(ids, (7, 0)).unfold(1, 8, 1)).flatten(2))
        for i in range(self.c.depth):
            x = self.get_submodule(f"hidden{i}")(activation(x, self.c))
        return self.output(activation(x, self.c))

class Muon(torch.optim.Optimizer):
    """torch.optim.Muon rounds to bfloat16 and has no heads."""
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (p,), mu, safety = group["params"], group["momentum"], group["newton_schulz_safety"]
            g = p.grad * (1 - mu if group["momentum_form"] == "ema" else 1.0)
            m = self.state[p].setdefault("m", torch.zeros_like(p)).mul_(mu).add_(g)
            u = (g + mu * m if group["nesterov"] else m).unflatten(0, (group["heads"], -1))
            x = u / (safety * u.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-15))
            for a, b, c in group["newton_schulz"]:
                gram = x @ x.mT
                x = a * x + (b * gram + c * gram @ gram) @ x
            self.state[p]["o"] = o = x.flatten(0, 1)
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(o, alpha=-group["lr"])

@torch.no_grad()
def qk_clip(net, c):
    for block in (net.get_submodule(f"block{i}") for i in range(c.depth)):
        largest = block.attention_logits.seen.triu().amax((0, 2, 3))     # a masked 0 does no harm
        root = (c.qk_clip_threshold / largest.clamp(min=c.qk_clip_threshold)).sqrt()
        for p in (*block.query.parameters(), *block.key.parameters()):
            p.mul_(root.repeat_interleave(c.head_dim).view(-1, *[1] * (p.ndim - 1)))

def draw(seed, shape):
    u = [seed * pow(48271, k, 2**31 - 1) % (2**31 - 1) for k in range(1, math.prod(shape) + 1)]
    return 12**0.5 * (torch.tensor(u).view(shape) / (2**31 - 1) - 0.5)

def digest(x):
    flat = x.detach().flatten()
    return {"shape": list(x.shape), "norm": flat.norm().item(), "first": flat[:3].tolist(),
            "cosine": (flat @ torch.arange(float(len(flat))).cos()).item(), "last": flat[-1].item()}

def digests(tensors):
    return {name: digest(ours(name, x)) for name, x in tensors.items()}

def scaled(net, base, c):
    """({name: parameter}, {name: multiplier}, {optimizer: groups}) of net, which it initialises."""
    params, mult, groups = {}, {}, {}
    for number, (key, p) in enumerate([*net.named_parameters()], 1):
        name, (path, _, leaf) = key.removesuffix(".weight"), key.rpartition(".")
        kind, group, mean, std, factors = resolve(name, p, base.get_parameter(key), c)
        p.data = mean + std * ours(name, draw(number, ours(name, p).shape)).contiguous()
        multiply(net.get_submodule(path), leaf, *factors)
        params[name], mult[name] = p, factors[0]
        groups.setdefault(kind, []).append(group)
    return params, mult, groups

def main(case_path, mine_path):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    case = json.loads(Path(case_path).read_text())
    resolved, c = case["resolved"], SimpleNamespace(**case["config"])
    add_factors(c)
    model = {"mlp": MLP, "transformer": Transformer}[c.model]
    net, base = model(c), model(SimpleNamespace(**vars(c) | {"width": c.base_width or c.width}))
    params, mult, groups = scaled(net, base, c)
    for module in net.modules():
        module.register_forward_hook(lambda layer, _, y: setattr(layer, "seen", y))
    make = {"adamw": lambda g: torch.optim.AdamW(g, betas=c.betas),
            "sgd": lambda g: torch.optim.SGD(g, momentum=c.momentum, nesterov=c.nesterov),
            "muon": lambda g: Muon(g, resolved["optimizer"])}
    optim = {kind: make[kind](g) for kind, g in groups.items()}
    mine = {"init": digests(params), "losses": []}
    for step, ids in enumerate(torch.tensor(case["ids"])):
        logits = net(ids[:, :-1]).flatten(0, 1)
        loss = F.cross_entropy(scale(logits, c.alpha_loss, c.dlogits), ids[:, 1:].flatten())
        net.zero_grad()
        loss.backward()
        norm = sum((p.grad / mult[name]).square().sum() for name, p in params.items()).sqrt()
        mine["losses"].append(loss.item())
        if step == 0:
            mine |= {"activations": {}, "loss": loss.item(), "effective_gradient_norm": norm.item(),
                     "gradients": digests({name: p.grad for name, p in params.items()})}
            for name in case["activations"]:
                layer = name.replace(".ffn", ".down") + "_out" * name.endswith(".attention")
                x = logits if name == "logits" else net.get_submodule(layer).seen
                mine["activations"][name] = digest(x.flatten(0, 1) if x.ndim == 3 else x)
        if c.clip:
            for p in params.values():
                p.grad *= (c.clip / norm).clamp(max=1)
        for optimizer in optim.values():
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * resolved["schedule"][step]
                group["params"][0].data.mul_(1 - group["lr"] * group.get("decay", 0.0))
            optimizer.step()
        if c.optimizer == "muonclip":
            qk_clip(net, c)
        if step == 0:
            mine["after_first_step"] = digests(params)
            for name in case.get("orthogonalized", ()):
                mine["orthogonalized"] = digests({name: optim["muon"].state[params[name]]["o"]})
    Path(mine_path).write_text(json.dumps(mine | {"after_last_step": digests(params)}))

if __name__ == "__main__":
    main(*sys.argv[1:])
