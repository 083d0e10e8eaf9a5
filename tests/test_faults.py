"""A short selection of the campaign of faults, and what its checks notice."""
import os

import pytest

import faults
from fault_tries import Campaign, Command, Failed, Try, lines_of, records_of

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds runs in /proc")
CHOSEN = ["kill_sweep", "flip_results", "cut_checkpoints", "streams", "bad_command", "bad_data"]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """An undisturbed sweep to compare with."""
    return Campaign(tmp_path_factory.mktemp("campaign"))


@pytest.fixture
def made(campaign):
    """A try whose folder holds the results of the undisturbed sweep."""
    made = Try(campaign, "kill_sweep", 0, quick=True)
    made.out.mkdir()
    (made.out / "results.jsonl").write_bytes((campaign.out / "results.jsonl").read_bytes())
    yield made
    made.close()


@pytest.mark.parametrize("kind", CHOSEN)
def test_a_fault_loses_and_changes_nothing(kind, campaign):
    assert faults.attempt(campaign, kind, 0, quick=True) == ("survived", "")
    assert not Command.alive


def test_a_run_that_was_told_and_is_not_recorded_is_lost(made):
    command = made.sweep()
    command.wait()
    made.kept(command)                              # nothing told, nothing lost
    command.files["stderr"].write_text("\n".join([*made.campaign.told, ""]))
    made.kept(command)
    results = made.out / "results.jsonl"
    results.write_bytes(b"".join(lines_of(made.out)[1:]))
    with pytest.raises(Failed, match="lost"):
        made.kept(command)


def test_a_record_with_another_loss_is_a_change(made):
    name, record = records_of(made.out).popitem()
    made.campaign.records[name], kept = record | {"loss": record["loss"] + 1e-15}, record
    try:
        with pytest.raises(Failed, match="changed"):
            made.check()
    finally:
        made.campaign.records[name] = kept


def test_a_traceback_is_noticed_and_so_is_a_process_that_never_ends(tmp_path, monkeypatch):
    settings = {"cwd": tmp_path, "env": dict(os.environ)}
    with pytest.raises(Failed, match="traceback"):
        Command(["-c", "1 / 0"], tmp_path, tmp_path / "a", **settings).wait()
    monkeypatch.setattr("fault_tries.LIMIT", 0)
    endless = Command(["-c", "input()"], tmp_path, tmp_path / "b", stdin=os.pipe()[0], **settings)
    with pytest.raises(Failed, match="hung"):
        endless.wait()
    endless.kill()
    assert endless.gone() and not Command.alive


def test_every_try_is_shared_out_and_counted():
    for tries in (1, 7, 1000):
        assert sum(faults.share(tries, faults.KINDS).values()) == tries
    assert all(faults.share(1000, faults.KINDS).values())
