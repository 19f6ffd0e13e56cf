"""Whatever is written behind an option, and whatever happens to the files: one line."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from crest.cli import main
from crest.lab.run import comparison
from crest.lab.run.settings import RunSettings
from crest.lab.run.under_way import stopped_runs

WORDS = ["compare", "digits", "--network=mlp", "--epochs=1", "--seeds=0", "--strategies=random"]
NUMBERS = ["0", "-1", "9" * 25, "9" * 5000, "nan", "inf", "-inf", "", " ", "x", "½", "1_0,", "--"]
NUMBERS += ["x" * 3000, "0x10", ","]


def refused(words, capsys):
    """The one line that refuses a command."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("crest: error: ")
    assert "Traceback" not in error
    assert "(--traceback shows where)" not in error
    assert len(error) < 1200
    return error


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: repr(value[:9]))
@pytest.mark.parametrize(
    "option",
    ["--threads", "--epochs", "--batch-size", "--lr", "--budget", "--evaluations", "--seeds"],
)
def test_odd_numbers_are_refused_in_one_line(option, value, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if (option, value) in {("--seeds", "0"), ("--lr", "9" * 25)}:
        return  # the first works, the second diverges
    told = refused([*WORDS, f"{option}={value}"], capsys)
    assert option.strip("-").replace("-", "_") in told.replace("-", "_") or "seed" in told


@pytest.mark.parametrize(
    "words",
    [
        ["--network="],
        ["--strategies="],
        ["--strategies=random,,full"],
        ["--diagnostics=,"],
        ["--option=="],
        ["--strategies=crest", "--option=subset_size=" + "(" * 3000],
        ["--strategies=crest", "--option=subset_size=" + "9" * 4000],
        ["--strategies=crest", "--option=subset_size=__import__('os')"],
        ["--out=/dev/null"],
        ["--out=/dev/null/x"],
        ["--out=" + "x" * 3000],
        ["--device=cuda:99"],
        ["--autocast=fp8"],
        ["--compile="],
    ],
    ids=lambda words: words[-1][:40],
)
def test_odd_words_are_refused_in_one_line(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused([*WORDS, *words], capsys)


@pytest.mark.parametrize("threads", [10_000, 9_999_999])
def test_more_threads_than_a_process_can_have_are_refused(threads, tmp_path, capsys):
    """libgomp ends the process in a segmentation fault where the system refuses a thread."""
    told = refused([*WORDS, f"--threads={threads}", f"--out={tmp_path}"], capsys)
    assert "threads must be in [1, " in told
    with pytest.raises(ValueError, match=r"threads must be in \[1, .*got"):
        RunSettings("digits", "mlp", "random", threads=threads)


def test_a_full_disk_is_named(tmp_path, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        assert main([*WORDS, f"--out={tmp_path}"]) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error == f"crest: error: {tmp_path / 'results.json'}: No space left on device"
    assert main([*WORDS, f"--out={tmp_path}"]) == 0
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["comparison.png", "results.json"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_that_is_read_only_is_named(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert "--out must be a folder to write to" in refused([*WORDS, f"--out={tmp_path}"], capsys)


def test_ctrl_c_saves_and_the_next_start_goes_on(tmp_path):
    words = ["run", "digits", "--network=mlp", "--epochs=3000", "--strategy=crest_paper"]
    words = [sys.executable, "-m", "crest", *words, "--threads=1", f"--out={tmp_path}"]
    process = subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs tests in its background has them ignore Ctrl-C, and what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert "to train" in process.stderr.readline()
    lock = tmp_path / "under-way"
    while not lock.exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    assert told == (
        f"crest: interrupted. What was saved is kept in {tmp_path}; give the same command again "
        "to go on.\n"
    )
    assert not list(tmp_path.rglob("*.lock"))


def test_runs_that_were_stopped_are_named_at_the_end_of_other_commands(
    tmp_path, capsys, monkeypatch
):
    class EveryStep(comparison.Checkpoint):
        is_due = True

        def save(self, state):
            super().save(state)
            if state["step"] == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(comparison, "Checkpoint", EveryStep)
        assert main([*WORDS, "--lr=0.3", f"--out={tmp_path}"]) == 130
    assert len(stopped_runs(tmp_path / "results.json")) == 1
    capsys.readouterr()
    assert main([*WORDS, f"--out={tmp_path}"]) == 0
    folder = tmp_path / "under-way"
    assert f"1 run(s) that were stopped or failed are kept in {folder}" in capsys.readouterr().err
    assert main([*WORDS, "--lr=0.3", f"--out={tmp_path}"]) == 0
    assert "were stopped" not in capsys.readouterr().err
    assert not list(folder.iterdir())
