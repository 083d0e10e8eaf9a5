"""The corpus and its batches: what is read, what is held out, and what a batch depends on."""
import os
import pathlib
import sysconfig

import numpy as np
import pytest

from tinymup.lab import data

PLACES = np.arange(1, 256, dtype=np.uint8)   # each byte is its own position
TEXT = b"It was the best of times, it was the worst of times. " * 20


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(TEXT)
    return file


def corpus_of_places():
    """A corpus in which each byte is its own position, so that a window shows where it starts."""
    return data.Corpus(PLACES[:230], PLACES[230:], "")


def one_line(error):
    """The message of a raised error, which must be one line."""
    message = str(error.value)
    assert message and "\n" not in message
    return message


# The default corpus

def test_the_default_corpus_is_the_standard_library_in_order_without_tests_and_packages():
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    names = [f.relative_to(root).as_posix() for f in data.standard_library()]
    assert names == sorted(names)
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert all(name.endswith(".py") for name in names)
    unwanted = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    assert not [name for name in names if unwanted & set(name.split("/"))]


def test_the_default_corpus_is_the_same_each_time_it_is_read():
    first, second = data.load(), data.load()
    assert first.digest == second.digest
    assert first.train.tobytes() == second.train.tobytes()
    assert first.held_out.tobytes() == second.held_out.tobytes()
    assert len(first.train) > 1_000_000   # a default run reads 300 · 16 · 64 = 307 200


# The split

def test_the_last_tenth_is_held_out(text_file):
    corpus = data.load([str(text_file)], 16)
    assert corpus.train.tobytes() + corpus.held_out.tobytes() == TEXT
    assert len(corpus.held_out) == len(TEXT) // 10


def test_training_windows_cover_the_training_bytes_and_no_held_out_byte():
    corpus = corpus_of_places()
    seen = np.concatenate([np.ravel(part) for step in range(200)
                           for part in data.training_batch(corpus, 0, step, 8, 16)])
    assert set(seen) == set(corpus.train)
    judged = np.concatenate([np.ravel(part) for batch in data.held_out_batches(corpus, 50, 8, 16)
                             for part in batch])
    assert set(judged) == set(corpus.held_out)


def test_a_changed_byte_changes_the_digest(text_file):
    before = data.load([str(text_file)], 16).digest
    text_file.write_bytes(TEXT[:-1] + b"!")
    assert data.load([str(text_file)], 16).digest != before


# Batches

def test_a_target_is_the_byte_after_its_input():
    ids, targets = data.training_batch(corpus_of_places(), 3, 5, 4, 16)
    assert ids.shape == targets.shape == (4, 16) and ids.dtype == targets.dtype == np.int64
    assert (targets == ids + 1).all()   # bytes are positions: the next position


def test_a_batch_is_a_function_of_seed_and_step():
    corpus = corpus_of_places()

    def batch(seed, step):
        return data.training_batch(corpus, seed, step, 4, 16)[0].tobytes()
    batches = {(seed, step): batch(seed, step) for seed in range(3) for step in range(20)}
    again = {(seed, step): batch(seed, step) for step in reversed(range(20)) for seed in range(3)}
    assert batches == again
    assert len(set(batches.values())) == len(batches)


def test_held_out_batches_are_the_same_each_time_and_differ_among_themselves():
    corpus = corpus_of_places()
    first, second = ([ids.tobytes() for ids, _ in data.held_out_batches(corpus, 4, 8, 8)]
                     for _ in range(2))
    assert first == second and len(set(first)) == 4


# What --data takes

@pytest.fixture
def folder(tmp_path):
    files = [("b.txt", b"b"), ("a.txt", b"a"), ("deep/er/c.txt", b"c"), ("deep/d.md", b"d")]
    for name, letter in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(letter * 100)
    return tmp_path


@pytest.mark.parametrize("paths, letters", [
    (["b.txt"], "b"),
    (["b.txt", "a.txt"], "ab"),              # sorted, whatever the order of the arguments
    ([""], "abdc"),                          # a directory: all files below it
    (["deep"], "dc"),
    (["*.txt"], "ab"),
    (["**/*.txt"], "abc"),                   # ** also matches no directory
    (["a.txt", "a.txt", "*.txt", ""], "abdc"),
])
def test_files_directories_and_globs_are_read_once_each_in_order(folder, paths, letters):
    corpus = data.load([str(folder / path) if path else str(folder) for path in paths], 4)
    wanted = b"".join(letter.encode() * 100 for letter in letters)
    assert corpus.train.tobytes() + corpus.held_out.tobytes() == wanted


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    (tmp_path / "a[1].txt").write_bytes(TEXT)
    assert data.find_files([str(tmp_path / "a[1].txt")]) == [tmp_path / "a[1].txt"]


@pytest.mark.parametrize("pattern", ["{0}", "{0}/**/*.txt", "{0}/**"])
def test_links_to_folders_are_followed_loops_end_and_each_file_is_read_once(folder, pattern):
    (folder / "deep" / "er" / "up").symlink_to(folder)
    (folder / "deep" / "er" / "up too").symlink_to(folder)
    (folder / "deep" / "again").symlink_to(folder / "deep")
    (folder / "linked.txt").symlink_to(folder / "a.txt")
    found = data.find_files([pattern.format(folder)])
    assert found == [folder / name for name in ("a.txt", "b.txt", "deep/d.md", "deep/er/c.txt")
                     if "*.txt" not in pattern or name != "deep/d.md"]


def test_a_folder_outside_is_read_through_a_link(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "e.txt").write_bytes(TEXT)
    (folder / "deep" / "link").symlink_to(outside)
    for pattern in ("", "**/e.txt", "deep/link/*", "deep/**/e.txt"):
        assert folder / "deep/link/e.txt" in data.find_files([str(folder / pattern)])


def test_one_file_under_several_names_is_read_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = ["a.txt", "deep/../a.txt", "./a.txt", str(folder / "a.txt"), "deep/er/../../*.txt"]
    assert [f.resolve() for f in data.find_files(names)] == [folder / "a.txt", folder / "b.txt"]


def test_a_glob_of_the_current_folder_leaves_hidden_folders_out(folder, monkeypatch):
    (folder / ".git").mkdir()
    (folder / ".git" / "x.txt").write_bytes(TEXT)
    monkeypatch.chdir(folder)
    assert [str(f) for f in data.find_files(["**/*.txt"])] == ["a.txt", "b.txt", "deep/er/c.txt"]


# What it refuses

@pytest.mark.parametrize("pattern", ["", "**/*.txt", "deep"])
def test_a_subfolder_that_cannot_be_read_is_refused_by_name(folder, pattern, monkeypatch):
    def scandir(path, scan=os.scandir):
        if str(path).endswith("er"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError) as error:
        data.load([str(folder / pattern)])
    assert str(folder / "deep/er") in one_line(error) and "Permission denied" in one_line(error)


def test_a_pipe_and_a_device_are_refused_and_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/zero", str(tmp_path / "p*"), str(tmp_path)):
        with pytest.raises(ValueError) as error:
            data.load([path])
        assert "regular files" in one_line(error)


def test_a_file_larger_than_the_memory_is_refused_by_its_size(text_file, monkeypatch):
    monkeypatch.setattr(data, "machine_memory", lambda: len(TEXT) - 1)
    with pytest.raises(ValueError) as error:
        data.load([str(text_file)])
    assert f"{len(TEXT):,} bytes" in one_line(error)


@pytest.mark.parametrize("path", ["nothing.txt", "nothing/", "*.nothing"])
def test_a_path_without_a_file_is_refused_by_name(tmp_path, path):
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
def test_text_too_short_for_one_window_is_refused_and_one_byte_more_is_taken(tmp_path, seq):
    file, enough = tmp_path / "text.txt", 10 * (seq + 1)   # the last tenth: one window of seq + 1
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


def test_bytes_that_are_not_utf8_are_accepted_as_text(tmp_path):
    (tmp_path / "latin1.txt").write_bytes("Köln ".encode("latin-1") * 200)
    assert len(data.load([str(tmp_path / "latin1.txt")], 16).train) == 900


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_a_file_without_read_permission_is_refused_by_name(text_file):
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
