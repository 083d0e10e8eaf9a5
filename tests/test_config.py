"""The config: its fields say all that flags, help, checks and the names of runs need."""
import json
import math
import shutil
from dataclasses import field, fields, make_dataclass, replace
from pathlib import Path

import pytest

import train
from tinymup.lab import config as configs
from tinymup.lab import data, flags, optimum, sweep
from tinymup.lab.config import (
    BASE, DEFAULTS, FIELDS, GROUPS, UNIT_DEFAULTS, Config, build, complete, flag, normalised,
    record_of, restored, spelled)
from tinymup.lab.results import Results

OWNED = [(name, owner) for name, f in FIELDS.items() for owner in f.metadata["owner"]]
NUMBERS = [name for name, f in FIELDS.items() if f.metadata["kind"] in (int, float, tuple)]
VALUES = {   # a value that is not the default, where the kind does not give one
    "model": "mlp", "param": "sp", "optimizer": "muon", "width": 256, "head_dim": 16,
    "base_width": 32, "base_head_dim": 16, "data": (__file__,), "device": "gpu",
    "qk_clip_threshold": 50.0}


def another(name):
    """A valid value of a field that is not its default."""
    about, default = FIELDS[name].metadata, FIELDS[name].default
    if name in VALUES:
        return VALUES[name]
    if about["choices"]:
        return next(choice for choice in about["choices"] if choice != default)
    return {int: 3, float: 0.25, bool: True, tuple: (0.5, 0.75)}[about["kind"]]


def user_of(name, **changes):
    """The default config with its owners set so that it uses a field."""
    owners = {o: values[0] for o, values in FIELDS[name].metadata["owner"].items()
              if FIELDS[o].default not in values}
    return Config(**owners | changes)


def message_of(config):
    """What `complete` says of a config that it refuses: one line."""
    with pytest.raises(ValueError) as error:
        complete(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def refused(arguments, tmp_path, capsys):
    """What `train.py` prints when it ends with status 2: one line."""
    with pytest.raises(SystemExit) as end:
        train.main([*arguments, "--out", str(tmp_path)])
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == "" and err.count("\n") == 1
    return err


def words(value):
    """A value as the command line has it."""
    return str(spelled(value))


# The metadata

def test_every_field_has_a_group_a_kind_and_a_help_text_and_no_owner_that_does_not_exist():
    for name, f in FIELDS.items():
        about = f.metadata
        assert about["group"] in GROUPS and about["help"]
        values = f.default, another(name)
        assert all(v is None or v == () or isinstance(v, about["kind"]) or name == "data"
                   for v in values)
        for owner, allowed in about["owner"].items():
            others = set(FIELDS[owner].metadata["choices"]) - set(allowed)
            assert others and len(others) + len(allowed) == len(FIELDS[owner].metadata["choices"])


def test_every_number_has_a_range_and_nothing_else_has():
    assert {name for name, f in FIELDS.items() if f.metadata["range"]} == set(NUMBERS)


def test_the_parser_has_exactly_the_flags_and_the_help_of_the_fields():
    parser = flags.Parser("program", None, "")
    flags.add_config(parser, *GROUPS)
    actions = {a.dest: a for a in parser._actions if a.dest != "help"}
    assert set(actions) == set(FIELDS)
    for name, action in actions.items():
        about = FIELDS[name].metadata
        assert action.option_strings == [flag(name)] and action.help.startswith(about["help"])
        assert all(choice in action.help for choice in about["choices"] or ())
    assert "[0.9,0.99]" in actions["betas"].help and "[100.0]" in actions["qk_clip_threshold"].help


def test_the_help_shows_the_defaults_of_each_optimizer_and_the_owners():
    text = flags.help_of("lr")
    assert "sgd 2^-1, adamw 2^-7, muon 2^-5, umup sgd 2^-5, umup adamw 2^0, umup muon 2^-4" in text
    assert "sgd off, muon on" in flags.help_of("nesterov") and "[64]" in flags.help_of("base_width")
    assert "muon/muonclip" in flags.help_of("coefficients")
    assert "not umup; transformer" in flags.help_of("attn_mult")


def test_the_tables_of_defaults_name_fields_that_use_them():
    for optimizer, defaults in [*DEFAULTS.items(), *UNIT_DEFAULTS.items()]:
        for name in defaults:
            assert FIELDS[name].default is None
            assert optimizer in FIELDS[name].metadata["owner"].get("optimizer", [optimizer])
    for name in BASE:
        assert FIELDS[name].default is None


# Owners

@pytest.mark.parametrize("name, owner", OWNED)
def test_a_field_is_refused_by_a_config_that_does_not_use_it(name, owner):
    complete(user_of(name, **{name: another(name)}))
    for value in FIELDS[owner].metadata["choices"]:
        if value not in FIELDS[name].metadata["owner"][owner]:
            message = message_of(user_of(name, **{name: another(name), owner: value}))
            assert flag(name) in message and f"{flag(owner)} {value}" in message


@pytest.mark.parametrize("name, owner", OWNED)
def test_a_field_is_normalised_in_a_sweep_in_which_some_runs_use_it(name, owner):
    allowed = FIELDS[name].metadata["owner"][owner]
    not_allowed = next(v for v in FIELDS[owner].metadata["choices"] if v not in allowed)
    base = user_of(name)
    first = getattr(complete(base), name)
    first = 4 if first is None else first           # the customary number of Muon's steps
    runs = sweep.grid(base, {owner: [allowed[0], not_allowed], name: [first, another(name)]})
    by_owner = {}
    for run in runs:
        by_owner.setdefault(getattr(run, owner), []).append(getattr(run, name))
    assert sorted(by_owner[allowed[0]], key=str) == sorted([first, another(name)], key=str)
    assert by_owner[not_allowed] == [FIELDS[name].default]


@pytest.mark.parametrize("name, owner", OWNED)
def test_a_flag_that_no_run_uses_is_refused_with_status_2(name, owner, tmp_path, capsys):
    allowed = FIELDS[name].metadata["owner"]
    scene = {o: values[0] for o, values in allowed.items()}
    not_allowed = [v for v in FIELDS[owner].metadata["choices"] if v not in allowed[owner]]
    arguments = [word for o, value in scene.items() if o != owner for word in (flag(o), value)]
    for value in (another(name), FIELDS[name].default):      # also if it is the default
        if value is not None:
            err = refused([*arguments, flag(owner), *not_allowed, flag(name), words(value)],
                          tmp_path, capsys)
            assert flag(name) in err and all(f"{flag(owner)} {v}" in err for v in not_allowed)
    assert not list(tmp_path.iterdir())


def test_a_mixed_sweep_of_the_command_line_has_one_run_for_each_distinct_config():
    def runs(*arguments):
        parsed = vars(train.parser().parse_args(arguments))
        return flags.configs_of(parsed)
    found = runs("--optimizer", "adamw", "muon", "--newton-schulz-steps", "3", "5")
    assert [(c.optimizer, c.newton_schulz_steps) for c in found] == [     # most work first
        ("muon", 3), ("muon", 5), ("adamw", None)]
    found = runs("--param", "sp", "mup", "umup", "--alpha-res", "0.5", "1", "--base-width", "32")
    assert {(c.param, c.alpha_res, c.base_width) for c in found} == {
        ("sp", 1, 32), ("mup", 1, 32), ("umup", 0.5, None), ("umup", 1, None)}
    assert len(found) == 4


# Ranges and choices

OUTSIDE = {configs.COUNT: (0, -1, math.inf, math.nan),
           configs.POSITIVE: (0, -1, math.inf, math.nan),
           configs.NOT_NEGATIVE: (-1, math.inf, math.nan),
           configs.FRACTION: (-0.1, 1, 2, math.nan), configs.DEPTH: (0, 10_001, 2**40)}
LIMITS = {configs.COUNT: 1, configs.POSITIVE: 1e-300, configs.NOT_NEGATIVE: 0,
          configs.FRACTION: 0, configs.DEPTH: 1}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_outside_its_range_is_refused(name):
    allowed, is_pair = FIELDS[name].metadata["range"], FIELDS[name].metadata["kind"] is tuple
    for value in OUTSIDE[allowed]:
        for v in [(value, 0.5), (0.5, value)] if is_pair else [value]:
            message = message_of(user_of(name, **{name: v}))
            assert message.startswith(f"{flag(name)} {spelled(v)}") and allowed.words in message


@pytest.mark.parametrize("name", NUMBERS)
def test_the_least_number_of_a_range_is_accepted(name):
    kind, limit = FIELDS[name].metadata["kind"], LIMITS[FIELDS[name].metadata["range"]]
    value = (limit, limit) if kind is tuple else limit
    around = {"width": {"head_dim": 2, "width": 2}, "head_dim": {"head_dim": 2},   # even, dividing
              "eps": {"dtype": "float64"}}                      # float32 would make it 0
    assert complete(user_of(name, **{name: value} | around.get(name, {})))


@pytest.mark.parametrize("name", [n for n, f in FIELDS.items() if f.metadata["choices"]])
def test_a_word_that_is_no_choice_is_refused(name):
    message = message_of(Config(**{name: "other"}))
    assert message.startswith(f"{flag(name)} other")
    assert all(choice in message for choice in FIELDS[name].metadata["choices"])
    for choice in FIELDS[name].metadata["choices"]:
        complete(user_of(name, **{name: choice}))


@pytest.mark.parametrize("config, reason", [
    (Config(eps=1e-60), "1.18e-38"), (Config(eps=5e-38), "first step"),   # times 0.1 there
    (Config(eps=5e-38, optimizer="muon"), "embedding"),
    (Config(eps=1e-35, width=2**20, base_width=32), "embedding"),         # divided by the ratio
    (Config(eps=1e-307, dtype="float64"), "2.23e-308")])
def test_an_epsilon_that_underflows_is_refused_with_the_reason(config, reason):
    message = message_of(config)
    assert message.startswith(f"--eps {config.eps}") and reason in message
    assert complete(replace(config, eps={"float32": 1e-30, "float64": 1e-300}[config.dtype]))
    if config.dtype == "float32":
        assert complete(replace(config, dtype="float64"))


# Programs under two names

BASE_SIZE = dict(width=64, head_dim=32, depth=2)


@pytest.mark.parametrize("changes, alike", [
    ({}, True), ({"width": 128}, False), ({"head_dim": 16}, False), ({"base_width": 32}, False),
    ({"depth": 4}, True), ({"optimizer": "muon", "muon_per_head": True}, True)])
def test_at_the_base_sizes_all_parametrizations_with_a_base_are_one_program(changes, alike):
    names = {configs.same_program(complete(Config(**BASE_SIZE | changes, param=param)))
             for param in FIELDS["base_width"].metadata["owner"]["param"]}
    assert len(names) == (1 if alike else 5)


def test_at_the_base_depth_all_depth_rules_are_one_program():
    def names(**changes):
        return {configs.same_program(complete(Config(depth_rule=rule, **changes)))
                for rule in FIELDS["depth_rule"].metadata["choices"]}
    assert len(names()) == 1 and len(names(depth=4)) == 3
    assert len(names(depth=4, base_depth=4)) == 1


def test_umup_and_other_settings_are_programs_of_their_own():
    size = BASE_SIZE | {"param": "mup"}
    seen = {configs.same_program(complete(Config(**size | changes))) for changes in (
        {}, {"param": "umup"}, {"seed": 1}, {"lr": 0.5}, {"tied": True}, {"dtype": "float64"})}
    assert len(seen) == 6


@pytest.mark.parametrize("changes", [{}, {"depth_rule": "completep", "param": "ntk"},
                                     {"model": "mlp", "head_dim": 32, "param": "ntk"},
                                     {"param": "mup-table3", "optimizer": "muon"}])
def test_one_program_under_two_names_gives_the_same_numbers(changes):
    config = complete(Config(**BASE_SIZE | changes))
    other = complete(normalised(configs.same_program(config)))
    assert other == configs.same_program(config) != config
    assert build(config).rows == build(other).rows
    assert build(config).scales == build(other).scales


# Completion

ALL = [user_of(name, **{name: another(name)}) for name in FIELDS] + [
    user_of(name, **{owner: value}) for name, owner in OWNED
    for value in FIELDS[owner].metadata["choices"]]


def test_a_complete_config_stays_as_it_is_also_through_json():
    for config in ALL:
        c = complete(config)
        assert complete(c) == normalised(c) == c
        assert restored(json.loads(json.dumps(record_of(c)))) == c


def test_a_complete_config_has_a_value_for_each_field_it_uses_and_none_for_the_others():
    for config in map(complete, ALL):
        for name, f in FIELDS.items():
            used = name not in configs.unused(config)
            if f.default is None and name != "newton_schulz_steps":   # None: the customary number
                assert (getattr(config, name) is not None) == used
            elif not used:
                assert getattr(config, name) == f.default


@pytest.mark.parametrize("steps, warmup", [(1, 0), (9, 0), (10, 1), (100, 10), (300, 20)])
def test_the_warmup_is_a_tenth_of_the_steps_and_at_most_20(steps, warmup):
    assert complete(Config(steps=steps)).warmup == warmup


# Keys

def test_a_default_spelled_out_does_not_change_the_key():
    for config in ALL:
        c = complete(config)
        for name in FIELDS:
            if getattr(config, name) is None and getattr(c, name) is not None:
                spelled_out = complete(replace(config, **{name: getattr(c, name)}))
                assert spelled_out.key("digest") == c.key("digest")
    assert complete(Config(betas=(0.9, 0.99), clip=0.0, data=())).key("d") == (
        complete(Config()).key("d"))


def test_each_field_and_the_corpus_change_the_key():
    keys = {}
    for name in FIELDS:
        default = complete(user_of(name))
        changed = complete(replace(user_of(name), **{name: another(name)}))
        assert changed.key("d") != default.key("d")
        keys.setdefault(changed.key("d"), []).append(name)
    assert len(keys) == len(FIELDS)
    assert complete(Config()).key("d") != complete(Config()).key("e")


def test_keys_are_those_of_the_results_files_that_users_have():
    """If they must change, raise KEY_VERSION, so that the records of now are read as old ones."""
    assert configs.KEY_VERSION == 2
    assert complete(Config(lr=0.01)).key("digest") == "b5a8f345a599"
    umup = Config(param="umup", optimizer="muonclip", lr=0.01, adam_lr=0.5)
    assert complete(umup).key("digest") == "c28afd9e6242"


def test_a_new_field_leaves_the_keys_of_old_configs_as_they_were():
    new = field(default=3, metadata=FIELDS["steps"].metadata)
    Wider = make_dataclass("Wider", [("new", int, new)], bases=(Config,), frozen=True)
    for c in map(complete, ALL):
        wider = Wider(**record_of(c))
        assert [f.name for f in fields(wider)] == [*FIELDS, "new"]
        assert wider.key("d") == c.key("d")
        assert replace(wider, new=4).key("d") != c.key("d")


# Results of the old version

TINY = dict(steps=4, warmup=1, batch=2, seq=8, data=("text.txt",), width=32)
OLD = Path(__file__).parent / "data/old_results.jsonl"   # six runs, keyed by all their fields
TODAY = [   # the same runs as one asks for them today
    Config(head_dim=16, **TINY),
    Config(head_dim=16, optimizer="muon", muon_scale="keller", seed=1, **TINY),
    Config(head_dim=16, param="umup", alpha_res=0.5, optimizer="muonclip", **TINY),
    Config(model="mlp", depth=3, ffn="relu", **TINY),
    Config(head_dim=16, param="sp", optimizer="sgd", momentum=0.9, clip=1.0, tied=True,
           base_width=16, **TINY),
    Config(head_dim=16, optimizer="muon", lr=2.0**100, **TINY)]


@pytest.fixture
def old(tmp_path):
    """A folder with the old file, and its records."""
    shutil.copy(OLD, tmp_path / "results.jsonl")
    return tmp_path, [json.loads(line) for line in OLD.read_text().splitlines()]


def test_the_finished_runs_of_an_old_file_are_found_by_the_keys_of_today(old, monkeypatch):
    folder, lines = old
    monkeypatch.setattr(sweep.Workers, "train", None)
    corpus = data.Corpus(None, None, lines[0]["corpus"])
    results = Results(folder)
    found = sweep.run_all([complete(c) for c in TODAY], corpus, results, shown=False)
    assert [r["loss"] for r in found] == [r["loss"] for r in lines]
    assert [r["status"] for r in found] == ["done"] * 5 + ["diverged"]
    assert [r["key"] for r in found] == [complete(c).key(corpus.digest) for c in TODAY]
    assert {r["key"] for r in lines}.isdisjoint(r["key"] for r in found)
    assert "loss" in optimum.report(*optimum.curves(found))
    assert (folder / "results.jsonl").read_bytes() == OLD.read_bytes()


def test_an_old_file_does_not_answer_for_other_runs(old, monkeypatch):
    folder, lines = old
    asked = []

    def worker(self, config, key, *_):
        asked.append(config)
        return {"key": key, "status": "done", "loss": 1.0, "config": record_of(config)}
    monkeypatch.setattr(sweep.Workers, "train", worker)
    corpus = data.Corpus(None, None, lines[0]["corpus"])
    others = [replace(complete(c), seed=7) for c in TODAY]
    results = Results(folder)
    sweep.run_all([*map(complete, TODAY), *others], corpus, results, shown=False)
    assert asked == others
    again = results.read()                     # old and new lines in one file
    assert len(again) == 12 and all(again[key]["key"] == key for key in again)
    sweep.run_all(others, corpus._replace(digest="another text"), results, shown=False)
    assert asked == others * 2
