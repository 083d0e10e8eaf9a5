"""Every number that a run uses, as plain data for tables and ports."""
from ..layers import Scales
from ..optim import schedule
from ..orthogonalize import COEFFICIENTS, triples_of
from ..resolve import base_fans, size_of
from ..scaling import BASE_INIT, DEPTH_RULES, PARAMETRIZATIONS, U_MUP_DEPTH, Size
from .config import MUONS, build, record_of, settings


def parameter(row, config, scales):
    """One parameter: what its model declares, its numbers, and the cells that they come from."""
    spec, table = row.spec, PARAMETRIZATIONS[config.param]
    rule, muon = table.rules[spec.role], row.optimizer == "muon"
    depth = (DEPTH_RULES["none"] if not spec.in_branch else
             U_MUP_DEPTH if table.base_free else DEPTH_RULES[config.depth_rule])
    ratio = config.depth / (1 if table.base_free else config.base_depth or config.depth)
    adam, mult = row.optimizer == "adamw", scales.mult[row.name]
    return {
        "name": row.name, "role": row.role, "shape": list(row.shape),
        "base_shape": None if table.base_free else list(spec.base_shape or spec.shape),
        "in_branch": spec.in_branch,
        "heads": row.shape[1] // spec.head_dim if spec.head_dim else None,
        "init_mean": row.mean, "init_std": row.std,
        "base_std": BASE_INIT[spec.role].at(Size(*base_fans(spec, table))),
        "mult_y": mult.y, "mult_dx": mult.dx, "mult_dw": mult.dw,
        "optimizer": row.optimizer, "lr": row.lr,
        "shape_factor": row.shape_factor if muon else None,
        "orthogonalized_heads": row.heads if muon else None,
        "eps": row.eps if adam else None,
        "weight_decay": row.weight_decay, "shrink_per_step": row.shrink,
        "sizes": size_of(spec, table, ratio)._asdict(),
        "exponents": {cell: exponents(getattr(rule, cell)) for cell in ("init", "mult")}
        | {cell: exponents(getattr(rule, cell).times(getattr(depth, cell)))
           for cell in (row.optimizer, *["eps"] * adam)},
    }


def exponents(power):
    """The exponents of a power that are not 0."""
    return {size: exponent for size, exponent in power._asdict().items() if exponent}


def resolved(config):
    """All numbers of a complete config's run, as nested dicts and lists.

    Errors: ValueError for a schedule of more than a million steps.
    """
    if config.steps > 1_000_000:
        raise ValueError(f"--steps {config.steps}: a resolved run lists the schedule's factor of "
                         "each step: give at most 1,000,000")
    network, s = build(config), settings(config)
    scales = network.scales
    coefficients = COEFFICIENTS[s.coefficients]
    muon = config.optimizer in MUONS["optimizer"]
    return {
        "config": record_of(config),
        "architecture": network.architecture._asdict(),
        "parameters": [parameter(row, config, scales) for row in network.rows],
        "scales": {name: getattr(scales, name) for name in Scales._fields
                   if name not in ("mult", "branches")}
        | {"branches": [branch._asdict() for branch in scales.branches],
           "readout": {key: getattr(scales.mult["output"], key) for key in ("y", "dx", "dw")}},
        "schedule": [schedule(config.schedule, t, config.steps, config.warmup)
                     for t in range(config.steps)],
        "optimizer": {
            "betas": list(s.betas), "momentum": s.momentum, "nesterov": s.nesterov,
            "clip": config.clip or None,
            "momentum_form": s.momentum_form if muon else "sum",
            "newton_schulz": [list(triple) for triple in
                              triples_of(s.newton_schulz_steps, coefficients)] if muon else None,
            "newton_schulz_safety": coefficients.safety if muon else None,
            "qk_clip_threshold": config.qk_clip_threshold
            if config.optimizer == "muonclip" else None},
    }
