"""Writes unit_scaling_decoder.json: a small decoder of the `unit-scaling` package, in float64.

    pip install torch unit-scaling==0.3.5
    python tests/data/make_unit_scaling_decoder.py

The function, with w of shape (fan_in, fan_out) as in all of tinymup (the package stores the
transpose):

    x = embedding[tokens]                            tokens (B, T) → x (B, T, D), no positions
    for each layer (block0, block1):
        h = x / rms(x)                               rms(x) = √(mean of x² over D + 1e-5), no gain
        q, k, v = (h w / √D for w in query, key, value)       heads: slices of the last axis
        h = attention(q, k, v)                       causal softmax(q kᵀ / head_dim) v, times the
                                                     package's factor
        x = a h attention_out / √D + b x             a, b of branch 2·layer
        h = x / rms(x)
        h = s · (h up / √D) · g · σ(g),  g = h gate / √D      s the package's factor
        x = a (h down / √F) + b x                    F = hidden size; a, b of branch 2·layer + 1
    logits = (x / rms(x)) output / D
    loss = mean cross-entropy of logits with targets

Gradients are those of the package, which are not the chain rule of these lines.
`input_gradient_factor` has the measured factor β in dx = β · dy wᵀ of each linear layer. The three
of the feed-forward layer have constraint=None in the package and so β = 1/√fan_out, like the
readout; the other linear layers of a block have β = 1/√fan_in.

Three AdamW steps on the same batch follow. `adamw` has the settings. weight_decay does not depend
on the learning rate: w ← (1 − weight_decay) w. The learning rate of a weight is lr times its
`lr_factor`, which is read from the package's optimizer.

One thing is changed: the package takes the RMS in float32 for every dtype, here it is taken in
float64.
"""
import json
from importlib.metadata import version
from pathlib import Path

import torch
import unit_scaling as uu
import unit_scaling.functional as U
from unit_scaling.core.functional import transformer_residual_scaling_rule

BATCH, SEQ, VOCAB, WIDTH, LAYERS, HEADS, FFN = 2, 5, 11, 8, 2, 2, 16
ADAMW = dict(lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01)
STEPS = 3


def rms_in_own_dtype(x, dims=None, keepdim=False, eps=0.0):
    """The package's rms without its cast to float32."""
    return (x.square().mean(dims, keepdim=keepdim) + eps).sqrt()


class Block(torch.nn.Module):
    """An attention and a feed-forward branch."""

    def __init__(self, tau_attention, tau_ffn):
        super().__init__()
        self.tau_attention, self.tau_ffn = tau_attention, tau_ffn
        self.norm = uu.RMSNorm(WIDTH)
        self.query, self.key, self.value, self.attention_out = (
            uu.Linear(WIDTH, WIDTH) for _ in range(4))
        self.ffn = uu.MLP(WIDTH, expansion_factor=FFN // WIDTH)

    def forward(self, x):
        branch, skip = U.residual_split(x, self.tau_attention)
        h = self.norm(branch)
        q, k, v = (layer(h).unflatten(-1, (HEADS, -1)).transpose(1, 2)
                   for layer in (self.query, self.key, self.value))
        h = U.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = U.residual_add(self.attention_out(h), skip, self.tau_attention)
        branch, skip = U.residual_split(x, self.tau_ffn)
        return U.residual_add(self.ffn(self.norm(branch)), skip, self.tau_ffn)


class Decoder(torch.nn.Module):
    """The function above."""

    def __init__(self):
        super().__init__()
        tau = transformer_residual_scaling_rule(residual_mult=1.0, residual_attn_ratio=1.0)
        self.embedding = uu.Embedding(VOCAB, WIDTH)
        # in a DepthModuleList the package's optimizer multiplies learning rates by 1/√layers
        self.blocks = uu.DepthModuleList([
            Block(tau(2 * i, 2 * LAYERS), tau(2 * i + 1, 2 * LAYERS)) for i in range(LAYERS)])
        self.norm = uu.RMSNorm(WIDTH)
        self.output = uu.LinearReadout(WIDTH, VOCAB)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x))


def linear_layers(model):
    """tinymup's name → the package's module."""
    layers = {}
    for i, block in enumerate(model.blocks):
        for name in ("query", "key", "value", "attention_out"):
            layers[f"block{i}.{name}"] = getattr(block, name)
        layers[f"block{i}.gate"] = block.ffn.linear_gate
        layers[f"block{i}.up"] = block.ffn.linear_1
        layers[f"block{i}.down"] = block.ffn.linear_2
    return {**layers, "output": model.output}


def input_gradient_factor(layer):
    """β in dx = β · dy wᵀ: the package's dx compared with the plain product."""
    x = torch.randn(3, layer.in_features, requires_grad=True)
    dy = torch.randn(3, layer.out_features)
    dx, = torch.autograd.grad(layer(x), x, dy)
    plain = dy @ layer.weight
    return ((dx * plain).sum() / plain.square().sum()).item()


def trained(model, optimizer, tokens, targets):
    """(logits and gradients of the first step, the loss before each step)"""
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        logits = model(tokens)
        loss = U.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        if step == 0:
            first = logits.tolist(), {w: w.grad.clone() for w in model.parameters()}
        losses.append(loss.item())
        optimizer.step()
    return first, losses


def main():
    """Writes the file."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    U.rms = rms_in_own_dtype
    model = Decoder()
    layers = linear_layers(model)
    weights = {"embedding": model.embedding.weight,
               **{name: layer.weight for name, layer in layers.items()}}
    assert {id(w) for w in weights.values()} == {id(w) for w in model.parameters()}
    tokens, targets = torch.randint(VOCAB, (2, BATCH, SEQ))

    def ours(tensor_of):
        """The tensor of every weight as lists, in tinymup's layout."""
        return {name: (tensor_of(w) if name == "embedding" else tensor_of(w).T).tolist()
                for name, w in weights.items()}

    factors = {name: input_gradient_factor(layer) for name, layer in layers.items()}
    optimizer = uu.optim.AdamW(weights.values(), **ADAMW)
    lr_factors = {name: group["lr"] / ADAMW["lr"]
                  for name, group in zip(weights, optimizer.param_groups)}
    initial = ours(lambda w: w.detach())
    (logits, gradients), losses = trained(model, optimizer, tokens, targets)

    record = {
        "versions": {"unit-scaling": version("unit-scaling"), "torch": torch.__version__},
        "sizes": {"batch": BATCH, "seq": SEQ, "vocab": VOCAB, "width": WIDTH, "depth": LAYERS,
                  "heads": HEADS, "ffn": FFN},
        "adamw": {**ADAMW, "steps": STEPS},
        "input_gradient_factor": factors,
        "lr_factor": lr_factors,
        "tokens": tokens.tolist(),
        "targets": targets.tolist(),
        "logits": logits,
        "loss_before_each_step": losses,
        "weights": initial,
        "gradients": ours(gradients.get),
        "weights_after": ours(lambda w: w.detach()),
    }
    text = json.dumps(record, allow_nan=False).replace(', "', ',\n"').replace('{"', '{\n"') + "\n"
    Path(__file__).with_name("unit_scaling_decoder.json").write_text(text)


if __name__ == "__main__":
    main()
