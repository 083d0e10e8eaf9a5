"""A network: the code of a model, joined with the rows of its parameters and the `Scales`.

Here the parts of the core meet. Read next: unit_scaling.py, the factors of u-μP."""
from typing import NamedTuple

from . import layers, ops, unit_scaling
from .backend import generator, to_device
from .number_formats import with_formats
from .resolve import attention_scale, branch_weight, relative_to, resolve, tied_readout_mult
from .scaling import PARAMETRIZATIONS


def initialize(rows, seed=0, dtype="float32"):
    """A dict name → array, drawn from N(mean, std²) as the row says, in float64 for all dtypes.
    Each parameter has its own random numbers, so adding one leaves the others alone."""
    return {row.name: to_device(
        row.mean + row.std * generator(seed, "init " + row.name).standard_normal(row.shape), dtype)
        for row in rows}


class Network(NamedTuple):
    """What a forward and a backward pass need besides the parameters. Token ids are (B, T)."""
    model: object            # a module with specs, forward, backward and largest_logits
    architecture: tuple
    rows: list
    scales: layers.Scales
    loss_scale: float = 1.0  # on all gradients in the backward pass, divided out at its end

    def logits(self, params, ids):
        """The logits (B·T, V) that the softmax takes, in the loss and in sampling."""
        logits, _ = self.model.forward(params, ids, self.architecture, self.scales)
        return ops.times(self.scales.logits, logits)

    def loss(self, params, ids, targets):
        """The mean cross-entropy in nats, on the device."""
        return ops.cross_entropy(self.logits(params, ids), targets.reshape(-1))[0]

    def loss_and_gradients(self, params, ids, targets, watch=layers.ignore, largest=None):
        """The loss, and its gradient by parameter (under u-μP times factors, see unit_scaling.py).
        largest: a dict that receives the largest attention logit of each head, for qk_clip."""
        logits, cache = self.model.forward(params, ids, self.architecture, self.scales, watch)
        if largest is not None:
            largest.update(self.model.largest_logits(cache))
        loss, c_loss = ops.cross_entropy(
            logits, targets.reshape(-1), self.scales.logits, self.scales.dlogits)
        dlogits = ops.times(self.loss_scale, ops.cross_entropy_backward(c_loss))
        grads = self.model.backward(dlogits, cache)
        return loss, {name: ops.times(1 / self.loss_scale, g) for name, g in grads.items()}


def build(model, architecture, base, hyper):
    """The `Network` of a model. base is the `Architecture` of the base model."""
    base_free = PARAMETRIZATIONS[hyper.param].base_free
    specs = relative_to(model.specs(architecture),
                        model.specs(base._replace(depth=architecture.depth)))
    rows = resolve(specs, hyper, architecture.depth / (1 if base_free else base.depth))
    scales = (unit_scaling.scales(rows, architecture, hyper) if base_free
              else exact_scales(rows, architecture, base, hyper))
    if hyper.matmul_format != "float":
        scales.mult.update(with_formats(scales.mult, rows, hyper))
    return Network(model, architecture, rows, scales, hyper.loss_scale)

def exact_scales(rows, architecture, base, hyper):
    """The `Scales` of SP, NTK and μP, whose gradients obey the chain rule. ValueError for u-μP."""
    if PARAMETRIZATIONS[hyper.param].base_free:
        raise ValueError("u-μP's gradients carry factors of their own: use unit_scaling.scales")
    mult = {row.name: ops.Mult.exact(row.mult) for row in rows}
    for row in rows:
        if row.role == "tied":
            mult["output"] = ops.Mult.exact(hyper.output_mult
                                            * tied_readout_mult(row.spec, hyper.param))
    attention = 1.0
    if "head_dim" in architecture._fields:
        attention = hyper.attn_mult * attention_scale(
            hyper.param, architecture.head_dim, base.head_dim)
    weight = branch_weight(hyper.depth_rule, architecture.depth / base.depth)
    branch = ops.Branch(skip=1.0, amount=weight, enter=weight, leave=1.0)
    return layers.Scales(mult, attention, (branch,) * (2 * architecture.depth))
