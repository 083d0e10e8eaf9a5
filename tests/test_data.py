"""The corpus and its batches: which bytes are read, which are held out, and what a batch depends on."""
import os
import pathlib
import sysconfig

import numpy as np
import pytest

from tinymup import data

PLACES = np.arange(1, 256, dtype=np.uint8)                       # bytes that say where they stand
TEXT = b"It was the best of times, it was the worst of times. " * 20


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(TEXT)
    return file


def corpus_of_places():
    """A corpus whose bytes are their own places, so that a window tells where it was cut."""
    return data.Corpus(PLACES[:230], PLACES[230:], "")


def one_line(error):
    """The message of a raised error, which must be one line."""
    message = str(error.value)
    assert message and "\n" not in message
    return message


# ── the default corpus ───────────────────────────────────────────────────────────────────────────────────────────────

def test_the_default_corpus_is_the_standard_library_in_order_without_tests_and_installed_packages():
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    names = [f.relative_to(root).as_posix() for f in data.standard_library()]
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert all(name.endswith(".py") for name in names)
    assert not [name for name in names if {"test", "tests", "idle_test", "site-packages", "dist-packages"} & set(name.split("/"))]


def test_the_default_corpus_is_the_same_each_time_it_is_read():
    first, second = data.load(), data.load()
    assert first.digest == second.digest
    assert first.train.tobytes() == second.train.tobytes() and first.held_out.tobytes() == second.held_out.tobytes()
    assert len(first.train) > 1_000_000                          # a default run reads 300 · 16 · 64 = 307 200


# ── the split ────────────────────────────────────────────────────────────────────────────────────────────────────────

def test_the_last_tenth_is_held_out(text_file):
    corpus = data.load([str(text_file)], 16)
    assert corpus.train.tobytes() + corpus.held_out.tobytes() == TEXT
    assert len(corpus.held_out) == len(TEXT) // 10


def test_no_training_window_reaches_the_held_out_bytes_and_every_training_byte_can_be_reached():
    corpus = corpus_of_places()
    seen = np.concatenate([np.ravel(part) for step in range(200) for part in data.training_batch(corpus, 0, step, 8, 16)])
    assert set(seen) == set(corpus.train)
    judged = np.concatenate([np.ravel(part) for batch in data.held_out_batches(corpus, 50, 8, 16) for part in batch])
    assert set(judged) == set(corpus.held_out)


def test_a_changed_byte_changes_the_digest(text_file):
    before = data.load([str(text_file)], 16).digest
    text_file.write_bytes(TEXT[:-1] + b"!")
    assert data.load([str(text_file)], 16).digest != before


# ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────────────

def test_a_target_is_the_byte_after_its_input():
    ids, targets = data.training_batch(corpus_of_places(), 3, 5, 4, 16)
    assert ids.shape == targets.shape == (4, 16) and ids.dtype == targets.dtype == np.int64
    assert (targets == ids + 1).all()                            # bytes are places: the next place


def test_a_batch_is_a_function_of_seed_and_step():
    corpus = corpus_of_places()
    batches = {(seed, step): data.training_batch(corpus, seed, step, 4, 16)[0].tobytes() for seed in range(3) for step in range(20)}
    again = {(seed, step): data.training_batch(corpus, seed, step, 4, 16)[0].tobytes() for step in reversed(range(20)) for seed in range(3)}
    assert batches == again
    assert len(set(batches.values())) == len(batches)


def test_held_out_batches_are_the_same_each_time_and_differ_among_themselves():
    corpus = corpus_of_places()
    first, second = ([ids.tobytes() for ids, _ in data.held_out_batches(corpus, 4, 8, 8)] for _ in range(2))
    assert first == second and len(set(first)) == 4


# ── what --data takes ────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.fixture
def folder(tmp_path):
    for name, letter in [("b.txt", b"b"), ("a.txt", b"a"), ("deep/er/c.txt", b"c"), ("deep/d.md", b"d")]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(letter * 100)
    return tmp_path


@pytest.mark.parametrize("paths, letters", [
    (["b.txt"], "b"),
    (["b.txt", "a.txt"], "ab"),                                  # sorted, in whatever order they are named
    ([""], "abdc"),                                              # a directory: all that is below it
    (["deep"], "dc"),
    (["*.txt"], "ab"),
    (["**/*.txt"], "abc"),                                       # ** also means no directory at all
    (["a.txt", "a.txt", "*.txt", ""], "abdc"),                   # what is named twice is read once
])
def test_files_directories_and_globs_are_read_once_each_in_order(folder, paths, letters):
    corpus = data.load([str(folder / path) if path else str(folder) for path in paths], 4)
    assert corpus.train.tobytes() + corpus.held_out.tobytes() == b"".join(letter.encode() * 100 for letter in letters)


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    (tmp_path / "a[1].txt").write_bytes(TEXT)
    assert data.find_files([str(tmp_path / "a[1].txt")]) == [tmp_path / "a[1].txt"]


# ── what it refuses ──────────────────────────────────────────────────────────────────────────────────────────────────

@pytest.mark.parametrize("path", ["nothing.txt", "nothing/", "*.nothing"])
def test_a_path_that_names_nothing_is_refused_by_name(tmp_path, path):
    with pytest.raises(ValueError) as error:
        data.load([str(tmp_path / path)])
    assert str(tmp_path / path).rstrip("/") in one_line(error)


def test_an_empty_file_and_an_empty_folder_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    for name in ("empty", "empty.txt"):
        with pytest.raises(ValueError) as error:
            data.load([str(tmp_path / name)])
        assert "0 bytes" in one_line(error)


@pytest.mark.parametrize("seq", [1, 2, 7, 64, 299])
def test_text_too_short_for_one_window_is_refused_and_one_byte_more_than_that_is_taken(tmp_path, seq):
    file, enough = tmp_path / "text.txt", 10 * (seq + 1)         # the last tenth is one window of seq + 1 bytes
    file.write_bytes(b"x" * (enough - 1))
    with pytest.raises(ValueError) as error:
        data.load([str(file)], seq)
    assert f"--seq {seq}" in one_line(error) and f"{enough - 1} bytes" in one_line(error)
    file.write_bytes(b"x" * enough)
    corpus = data.load([str(file)], seq)
    assert data.held_out_batches(corpus, 1, 2, seq)[0][0].shape == (2, seq)


def test_the_length_that_the_message_asks_for_is_enough(tmp_path):
    file = tmp_path / "text.txt"
    for seq in range(1, 80, 3):
        file.write_bytes(b"x")
        with pytest.raises(ValueError) as error:
            data.load([str(file)], seq)
        wanted = int(one_line(error).split("needs ")[1].split()[0])
        file.write_bytes(b"x" * wanted)
        data.load([str(file)], seq)


def test_a_file_with_a_zero_byte_is_refused_as_no_text(folder):
    (folder / "deep" / "picture.png").write_bytes(b"\x89PNG\0" + TEXT)
    with pytest.raises(ValueError) as error:
        data.load([str(folder)])
    assert "picture.png" in one_line(error) and "not text" in one_line(error)


def test_bytes_that_are_no_utf8_are_text_all_the_same(tmp_path):
    (tmp_path / "latin1.txt").write_bytes("Köln ".encode("latin-1") * 200)
    assert len(data.load([str(tmp_path / "latin1.txt")], 16).train) == 900


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can read anything")
def test_a_file_that_may_not_be_read_is_refused_by_name(text_file):
    text_file.chmod(0)
    with pytest.raises(ValueError) as error:
        data.load([str(text_file)])
    assert str(text_file) in one_line(error)


def test_a_file_that_cannot_be_read_is_refused_by_name(text_file, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)
    with pytest.raises(ValueError) as error:
        data.load([str(text_file)])
    assert str(text_file) in one_line(error) and "Permission denied" in one_line(error)
