"""The command: results that continue, errors on one line."""

import json
import re
import subprocess
import sys

import pytest
import torch

import crest
import crest.cli.training
from crest.cli import main
from crest.lab.paper import ITEMS
from crest.lab.run import comparison
from toys import let_diverge

QUICK = ["--network", "mlp", "--epochs", "2", "--seeds", "0,1", "--strategies", "crest,random,full"]


def test_compare_writes_table_results_and_figure_and_goes_on(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["compare", "digits", *QUICK, "--out", str(out)]
    assert main([*words, "--time-matched"]) == 0
    first = capsys.readouterr()
    rows = [line.split("  ")[0] for line in first.out.splitlines()]
    assert rows[:6] == ["strategy", "-" * 18, "crest", "random", "full", "random, equal time"]
    assert "Equal steps: crest minus random is" in first.out
    assert "Equal time: " in first.out
    assert f"Written: {out / 'results.json'}, {out / 'comparison.png'}" in first.out
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    records = json.loads((out / "results.json").read_text())
    assert len(records) == 8
    assert {record["steps"] for record in records if record["strategy"] == "full"} == {88}
    wanted = "data network strategy seed settings steps accuracy accuracy_gap seconds cost "
    wanted += "overhead updates history curve versions machine"
    assert set(wanted.split()) <= set(records[0])

    assert main([*words, "--time-matched"]) == 0
    second = capsys.readouterr()
    assert second.err.count("kept from an earlier call") == 8
    assert second.out == first.out


def test_run_trains_one_and_shares_its_results_with_compare(tmp_path, capsys):
    common = ["digits", "--network", "mlp", "--epochs", "1", "--out", str(tmp_path)]
    assert main(["run", *common, "--strategy", "random", "--seed", "4"]) == 0
    output = capsys.readouterr()
    assert "random, seed 4" in output.err
    assert "results.json" in output.out
    assert main(["compare", *common, "--strategies", "random", "--seeds", "4"]) == 0
    assert "kept from an earlier call" in capsys.readouterr().err


def test_options_reach_strategy_and_settings(tmp_path):
    words = "run digits --strategy crest --network cnn --epochs 1"
    words += " --option subset_size=40 --option features=logits"
    words += " --option switch_off=false --budget 0.05 --batch-size 16 --lr 0.02"
    words += " --weight-decay 0 --no-augment"
    assert (
        main([*words.split(), "--out", str(tmp_path), "--evaluations", "1", "--threads", "1"]) == 0
    )
    (record,) = json.loads((tmp_path / "results.json").read_text())
    settings = record["settings"]
    assert settings["strategy_settings"]["subset_size"] == 40
    assert settings["strategy_settings"]["features"] == "logits"
    assert settings["strategy_settings"]["switch_off"] is False
    assert (settings["network"], settings["lr"], settings["weight_decay"]) == ("cnn", 0.02, 0)
    assert (settings["batch_size"], settings["budget"], settings["augment"]) == (16, 0.05, False)
    assert record["steps"] == 4  # 5 % of 1437 // 16 = 89
    assert len(record["curve"]) == 1


def test_diagnostics_are_kept_with_the_results(tmp_path, capsys):
    words = ["digits", "--network", "mlp", "--epochs", "1", "--out", str(tmp_path)]
    asked = ["--diagnostics", "selections, gradient_error"]
    assert main(["run", *words, "--strategy", "random", *asked]) == 0
    (record,) = json.loads((tmp_path / "results.json").read_text())
    assert list(record["diagnostics"]) == ["gradient_error", "selections"]
    assert (
        main(
            ["compare", *words, "--strategies", "random", "--seeds", "0", *asked[:1], "selections"]
        )
        == 0
    )
    assert "kept from an earlier call" in capsys.readouterr().err


def test_every_baseline_runs_from_the_command_line(tmp_path):
    names = "craig,grad_match,glister,adacore,loss_pruning,selective_backprop,remembered,sgd_dagger"
    words = f"compare digits --network mlp --epochs 1 --seeds 0 --strategies {names} --out"
    assert main([*words.split(), str(tmp_path)]) == 0
    records = json.loads((tmp_path / "results.json").read_text())
    assert [record["strategy"] for record in records] == names.split(",")
    assert {record["steps"] for record in records} == {4}


def test_runs_that_diverge_are_named_and_the_others_shown(tmp_path, capsys, monkeypatch):
    let_diverge(monkeypatch, lambda settings: settings.strategy == "crest_paper")
    words = "compare digits --network mlp --epochs 1 --seeds 0 --strategies crest_paper,random"
    assert main([*words.split(), "--out", str(tmp_path)]) == 2
    out, told = capsys.readouterr()
    assert "crest_paper, seed 0: failed: losses must be finite; got nan\n" in told
    assert told.endswith("crest: error: 1 run(s) failed, as told above.\n")
    assert "\nrandom  " in out
    assert (tmp_path / "comparison.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "comapre digits",
            "command must be one of compare, demo, doctor, report, reproduce, run, strategies; "
            ".*Did you mean compare?",
        ),
        ("compare", "arguments are required: DATA"),
        ("compare digts", "data must be one of digits, .*Did you mean digits?"),
        ("compare digits --network resnet21", "network must be one of .*Did you mean resnet20?"),
        ("compare digits --strategies crest,rand", "strategy must be one of .*got 'rand'"),
        (
            "compare digits --sedes 0",
            "--sedes is no option of crest compare. Did you mean --seeds?",
        ),
        ("compare digits --seed 0", "Did you mean --seeds?"),
        ("run digits --seeds 0", "Did you mean --seed?"),
        ("compare digits --seeds 0,x", "--seeds: must be integers with commas between; got '0,x'"),
        ("run digits --seed -1", r"seed must be in \[0, 2\*\*63 - 2\]; got -1"),
        ("compare digits --budget 1.5", r"budget must be in \(0, 1\].*got 1.5"),
        ("compare digits --epochs 0", "--epochs: must be an integer >= 1; got '0'"),
        ("compare digits --epochs", "--epochs: expected one argument"),
        ("compare digits --lr -1", "--lr: must be a number > 0; got '-1'"),
        ("compare digits --batch-size 5000", "train examples, 1437; got 5000"),
        ("run digits --option tau=3", "option must be one of .*got 'tau'"),
        (
            "run digits --strategy crest --option switch_off=no",
            "switch_off must be of type bool; got 'no'",
        ),
        (
            "run digits --strategy crest_paper --option exclusion_interval=none",
            r"must be of type int \| None; got 'none'. None is written with a capital letter.",
        ),
        ("run digits --option tau", "must look like subset_size=500; got 'tau'"),
        (
            "compare digits --strategies full --time-matched",
            "random and crest, crest_paper, online or remembered; the plan has full",
        ),
        (
            "run digits --diagnostics forgeting",
            "diagnostic must be one of .*Did you mean forgetting?",
        ),
        ("compare digits --diagnostics selections,x", "diagnostic must be one of .*got 'x'"),
        ("compare cifar10 --data-dir nowhere", "cifar10 needs the files data_batch_1"),
        ("compare digits --device gpu", "--device: must be one of .*got 'gpu'. Did you mean cuda?"),
        ("compare digits --strategies crest random", "by commas, as in --strategies crest,random."),
        ("compare --strategies crest random digits", "by commas, as in --strategies crest,random."),
        ("compare --strategies crest random", "by commas, as in --strategies crest,random."),
        ("compare --strategies=crest random digits", "by commas, as in --strategies crest,random."),
        ("compare --seeds 0,1 digit", "data must be one of .*Did you mean digits?"),
        ("compare --seeds 0 1", "by commas, as in --seeds 0,1."),
        ("compare digits --seeds 0 1 2", "by commas, as in --seeds 0,1."),
        ("reproduce table1 --tasks cifar10 snli", "by commas, as in --tasks cifar10,snli."),
        ("strategies more", "more is no option of crest strategies"),
        ("strategies --import nowhere.py", "there is no file nowhere.py"),
        ("strategies --import no_such_module", "there is no module no_such_module"),
        ("run digits --lr 1e30 --network mlp --epochs 5", "must be finite; got .* Lower"),
        ("reproduce tabel3", "item must be one of table1, .*Did you mean table3?"),
        ("reproduce table3 --scale huge", "scale must be one of smoke, small, paper; got 'huge'"),
        ("reproduce table3 --shard 3/2", "must look like 1/4, 1 to 4 of 4; got '3/2'"),
        ("reproduce table3 --tasks snli", "task of table3 must be one of cifar10; got 'snli'"),
        ("reproduce fig3 --scale paper", "cifar10 needs the files data_batch_1"),
        (
            "reproduce table1 --scale paper --tasks snli",
            "snli needs the files snli_1.0_train.jsonl, .* They come from https://nlp",
        ),
        ("compare digits more", "more is no option of crest compare"),
    ],
)
def test_errors_are_one_line_without_a_traceback(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    *told, error = capsys.readouterr().err.splitlines()
    assert error.startswith("crest: error: ")
    assert re.search(message, error), error
    assert not any("Traceback" in line for line in told)


def test_cuda_that_is_not_there_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["run", "digits", "--device", "cuda"]) == 2
    assert "--device cuda needs a GPU" in capsys.readouterr().err


def test_out_must_be_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["run", "digits", "--out", str(tmp_path / "file")]) == 2
    assert "--out must be a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_corrupt_results_are_named_before_training_and_left_alone(tmp_path, capsys):
    path = tmp_path / "results.json"
    path.write_text("[{]")
    assert main(["compare", "digits", *QUICK, "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path} must be a list of finished runs; it is no JSON" in line
    assert path.read_text() == "[{]"


def test_ctrl_c_keeps_finished_runs(tmp_path, capsys, monkeypatch):
    train, calls = comparison.train, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    monkeypatch.setattr(comparison, "train", interrupted)
    assert main(["compare", "digits", *QUICK, "--out", str(tmp_path)]) == 130
    assert "interrupted. What was saved is kept in" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "results.json").read_text())) == 1


def test_unforeseen_errors_keep_their_type_and_show_where_if_asked(tmp_path, capsys, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(crest.cli.training, "compare", broken)
    words = ["run", "digits", "--out", str(tmp_path)]
    assert main(words) == 2
    assert capsys.readouterr().err == (
        "crest: error: RuntimeError: out of memory (--traceback shows where)\n"
    )
    assert main([*words, "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_missing_matplotlib_is_told_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["compare", "digits", *QUICK, "--out", str(tmp_path)]) == 2
    assert "pip install 'crest-coresets[cli]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_of_reproduce_lists_the_items(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["reproduce", "--help"])
    text = capsys.readouterr().out
    for name, item in ITEMS.items():
        assert re.search(rf"^  {name} +{re.escape(item.what)}$", text, re.MULTILINE)


@pytest.mark.parametrize("words", [[], ["run"], ["compare"]], ids=["crest", "run", "compare"])
def test_help_names_what_there_is(words, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    if words:
        for word in ("digits", "resnet50", "greedy", "--budget", "--data-dir", "--out"):
            assert word in text
    else:
        assert "crest compare digits" in text


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"crest {crest.__version__}\n"


def test_without_a_command_help_is_shown(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "usage: crest" in capsys.readouterr().out


def test_importing_the_command_imports_nothing_optional():
    code = "import sys, crest.cli; print({'sklearn', 'matplotlib', 'PIL', 'rich'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_reproduce_writes_an_item_and_goes_on(tmp_path, capsys):
    words = ["reproduce", "fig8", "--out", str(tmp_path), "--threads", "1"]
    assert main([*words, "--minutes", "1e-9"]) == 0
    first = capsys.readouterr().out
    assert "4 run(s) of fig8 are left; give the same command again to go on" in first
    assert main(words) == 0
    second = capsys.readouterr().out
    assert second.startswith("## Figure 8 at smoke scale (mlp on digits")
    assert "are left" not in second
    assert (tmp_path / "smoke" / "fig8.md").read_text() in second
    assert (tmp_path / "smoke" / "fig8.png").exists()
    assert main(words) == 0
    assert capsys.readouterr().out == second
