"""The command line: what is understood, what is handed on, and how it fails."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from workbench import cli
from workbench.errors import WorkbenchError

COMMANDS = (
    "shapes",
    "validate",
    "import",
    "split",
    "init",
    "train",
    "eval",
    "predict",
    "show",
    "report",
    "runs",
    "sweep",
    "env",
    "build-ops",
)


class Calls(list):
    """Stands in for a function of workflows and keeps how it was called."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.append((args, kwargs))
        return self.result


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls(Path("run"))
    monkeypatch.setattr("workbench.workflows.train.train", calls)
    return calls


def _refused(capsys: pytest.CaptureFixture, *argv: str) -> str:
    """The sentence on stderr of a call that must fail with exit code 2."""
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("workbench: error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert f"\n  workbench {command}".rstrip() in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"workbench {cli.__version__}\n"


@pytest.mark.parametrize("name", ["--config", "--config-file"])
@pytest.mark.parametrize(
    "rest",
    [
        ["--output", "there", "SOLVER.MAX_ITER", "7", "SOLVER.POLY_LR_CONSTANT_ENDING", "-1"],
        ["SOLVER.MAX_ITER", "7", "SOLVER.POLY_LR_CONSTANT_ENDING", "-1", "--output", "there"],
        ["SOLVER.MAX_ITER", "7", "--output=there", "SOLVER.POLY_LR_CONSTANT_ENDING", "-1"],
    ],
)
def test_train_takes_overrides_anywhere(trained: Calls, tiny_config: Path, name: str, rest: list[str]) -> None:
    assert cli.main(["train", name, str(tiny_config), *rest]) == 0
    ((cfg,), options) = trained[0]
    assert (cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER) == ("there", 7)
    assert cfg.SOLVER.POLY_LR_CONSTANT_ENDING == -1
    assert options == {"resume": True, "restart": False, "accept_data": False}


def test_train_no_resume(trained: Calls, tiny_config: Path) -> None:
    assert cli.main(["train", "--config", str(tiny_config), "--no-resume"]) == 0
    assert trained[0][1]["resume"] is False


def test_eval_hands_on_what_was_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    calls = Calls({"segm": {"AP": 1.0}})
    monkeypatch.setattr("workbench.workflows.evaluate.evaluate", calls)
    argv = ["eval", "--ckpt", "c", "--dataset", "d", "--output", "o", "--json", "TEST.RANK_BY", "sum"]
    assert cli.main(argv) == 0
    assert calls == [(("c",), {"dataset": "d", "output": "o", "overrides": ["TEST.RANK_BY", "sum"]})]
    assert json.loads(capsys.readouterr().out) == calls.result


def test_predict_hands_on_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls([Path("a.png"), Path("predictions.json")])
    monkeypatch.setattr("workbench.workflows.predict.predict", calls)
    options = ["--ckpt", "c", "--output", "o", "--score-threshold", "0.25", "--filters", "f.json"]
    assert cli.main(["predict", *options, "a.png", "b*.png"]) == 0
    ((args, kwargs),) = calls
    assert args == ("c", ["a.png", "b*.png"], "o") and kwargs == {
        "score_threshold": 0.25,
        "filters": "f.json",
        "device": None,
    }


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("", "required: COMMAND"),
        ("trian", "invalid choice: 'trian'"),
        ("train", "required: --config"),
        ("train --confg x", "there is no option --confg (did you mean '--config'?)"),
        ("train --config x --outptu=y", "did you mean '--output'?"),
        ("train --config x -v", "there is no option -v"),
        ("shapes --seed many", "invalid int value: 'many'"),
        ("shapes extra", "extra is not understood"),
        ("eval", "either --ckpt or --predictions"),
        ("eval --ckpt a --predictions b", "either --ckpt or --predictions"),
        ("eval --predictions a.json", "--predictions needs --annotations"),
        ("eval --ckpt a --annotations b.json", "--annotations goes with --predictions"),
        ("eval --predictions a --annotations b --dataset c", "--dataset goes with --ckpt"),
        ("predict --ckpt a a.png", "required: --output"),
        ("show no-such-run", "no run directory no-such-run"),
    ],
)
def test_a_wrong_call_is_one_sentence(argv: str, said: str, capsys: pytest.CaptureFixture) -> None:
    assert said in _refused(capsys, *argv.split())


def test_overrides_come_in_pairs(trained: Calls, tiny_config: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["train", "--config", str(tiny_config), "--output", "there", "SOLVER.MAX_ITER"]
    assert "'SOLVER.MAX_ITER' has no value" in _refused(capsys, *argv)
    assert not trained


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (WorkbenchError("A plain sentence."), "workbench: error: A plain sentence.\n"),
        (KeyboardInterrupt(), "workbench: error: stopped by Ctrl-C.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "x.pt"), "No space left on device: x.pt"),
        (PermissionError(errno.EACCES, "Permission denied", "outputs"), "Permission denied: outputs"),
    ],
)
def test_errors_of_the_work_are_one_sentence(
    raised: BaseException,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    tiny_config: Path,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("workbench.workflows.train.train", fail)
    assert said in _refused(capsys, "train", "--config", str(tiny_config))


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), OSError("of a library"), RecursionError("deep")])
def test_a_defect_is_a_sentence_and_a_file(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tiny_config: Path, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("workbench.workflows.train.train", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    argv = ["train", "--config", str(tiny_config)]
    assert cli.main(argv) == 70
    said = capsys.readouterr().err
    (report,) = tmp_path.glob("workbench-defect-*.txt")
    assert said.startswith("workbench: error: this is a defect of the workbench (") and said.count("\n") == 1
    assert f"{type(error).__name__}: {error}" in said and str(report) in said and "--debug" in said
    text = report.read_text()
    assert f"workbench train --config {tiny_config}" in text and "torch 2" in text and "raise error" in text

    assert cli.main([*argv, "--debug"]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert cli.main(argv) == 70
    assert "its traceback cannot be written (No such file" in capsys.readouterr().err


def test_memory_that_is_used_up_and_an_interrupted_import_are_no_defects(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tiny_config: Path
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ImportError("initialization failed")  # noqa: B904

    def out_of_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    for function, said in ((interrupted, "stopped by Ctrl-C."), (out_of_memory, "lower SOLVER.IMS_PER_BATCH")):
        monkeypatch.setattr("workbench.workflows.train.train", function)
        assert said in _refused(capsys, "train", "--config", str(tiny_config))


PRINTS = """
import sys
from workbench import cli, console
def run(args):
    sys.stdin.readline()  # until the reader is gone
    for _ in range(3):
        console.print_line("4 \\u00d7 4 " + "x" * 100000)
cli.COMMANDS["env"] = cli.COMMANDS["env"]._replace(run=run)
sys.exit(cli.main(["env"]))
"""


@pytest.mark.parametrize("where", ["pipe", "full", "closed", "ascii"])
def test_a_log_that_cannot_be_printed_stops_nothing(where: str) -> None:
    """``workbench train | head -1``, ``> /dev/full``, ``>&-`` and an encoding without the character."""
    if where == "full" and not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux's")
    redirection = {"full": "> /dev/full", "closed": ">&-"}.get(where, "")
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, PRINTS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONIOENCODING": "ascii"},
    )
    if where == "pipe":
        process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    printed = b"" if where == "pipe" else process.stdout.read()
    said = process.stderr.read().decode()
    assert process.wait() == 0
    reasons = {"pipe": "Broken pipe", "full": "No space left on device"}
    sentence = f"workbench: stdout cannot be written ({reasons.get(where)}); the training goes on\n"
    assert said == (sentence if where in reasons else "")
    assert printed.count(b"4 \\xd7 4 xxx") == (3 if where == "ascii" else 0)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", ">&- 2>&- <&-"])
def test_an_error_keeps_its_exit_code_without_a_stderr(redirection: str) -> None:
    line = f'"$0" -m workbench show no-such-run {redirection}'
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.run(["sh", "-c", line, sys.executable], env=environment).returncode == 2


def test_ctrl_c_while_the_modules_are_imported_is_one_sentence(tmp_path: Path) -> None:
    """The signal comes in an import of the command line, in one of a command, and where Python ignores it."""
    site = (
        "import builtins, signal\n"
        "plain = builtins.__import__\n"
        "class Interrupting:\n"
        "    def __del__(self): signal.raise_signal(signal.SIGINT)\n"
        "def load(name, *rest, **named):\n"
        "    if name == WHERE:\n"
        "        builtins.__import__ = plain\n"
        "        Interrupting() if IGNORED else signal.raise_signal(signal.SIGINT)\n"
        "    return plain(name, *rest, **named)\n"
        "builtins.__import__ = load\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}"}
    for where, ignored in (("argparse", False), ("workbench.runs.table", False), ("workbench.runs.table", True)):
        header = f"WHERE, IGNORED = {where!r}, {ignored}\n"
        (tmp_path / "sitecustomize.py").write_text(header + site)
        done = subprocess.run(
            [sys.executable, "-m", "workbench", "show", "x"], env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (2, "workbench: error: stopped by Ctrl-C.\n"), where


def test_warnings_as_errors_do_not_stop_a_command() -> None:
    code = "import warnings; from workbench import cli; cli.COMMANDS['env'] = cli.COMMANDS['env']._replace(\n"
    code += "    run=lambda args: warnings.warn('old', DeprecationWarning)); raise SystemExit(cli.main(['env']))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONWARNINGS": "error"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_a_broken_pipe_is_no_error() -> None:
    """``workbench shapes --help | head -1``: the pipe is closed before anything is written to it."""
    code = (
        "import sys, types; from workbench import cli\n"
        "def run(args):\n"
        "    sys.stdin.readline()\n"  # until the reader is gone
        "    print('x' * 200000)\n"
        "cli.COMMANDS['env'] = cli.COMMANDS['env']._replace(run=run)\n"
        "sys.exit(cli.main(['env']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1
    process.stderr.close()


def test_shapes_and_validate(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "shapes"
    argv = f"shapes --train 2 --val 1 --test 1 --image-size 32 --seed 3 --output {output}".split()
    assert cli.main(argv) == 0 and cli.main(argv) == 0
    assert "complete since an earlier call" in capsys.readouterr().out
    labels = output / "annotations" / "train.json"
    assert cli.main(["validate", str(labels)]) == 0
    assert cli.main(["validate", "--root", str(tmp_path), "shapes_train", "shapes_val"]) == 0
    content = json.loads(labels.read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = 99
    labels.write_text(json.dumps(content))
    capsys.readouterr()
    assert cli.main(["validate", str(labels), "--no-images", "--all"]) == 2
    captured = capsys.readouterr()
    for annotation in content["annotations"]:
        assert f"annotation {annotation['id']}" in captured.out
    assert captured.err == f"workbench: error: faults were found in {labels}.\n"


def test_env_reports_as_text_and_json(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["env"]) == 0
    assert "torchvision" in capsys.readouterr().out
    assert cli.main(["env", "--json"]) == 0
    machine = json.loads(capsys.readouterr().out)
    assert machine["torchvision"]["error"] is None
    assert all(check["passed"] for check in machine["operators"]["checks"])


def test_a_run_is_evaluated_shown_and_scored_from_its_file(
    tiny_run: Path, shapes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["eval", "--ckpt", str(tiny_run), "--output", str(tmp_path), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["images"] == 6 and (tmp_path / "predictions.json").is_file()

    truth = shapes_root / "shapes" / "annotations" / "val.json"
    results = tmp_path / "predictions.json"
    assert cli.main(["eval", "--predictions", str(results), "--annotations", str(truth), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["segm"] == pytest.approx(scores["segm"], nan_ok=True)

    assert cli.main(["show", str(tiny_run)]) == 0
    shown = capsys.readouterr().out
    for place in ("checkpoints/best", "metrics.json", "figures"):
        assert str(tiny_run / place) in shown


def test_runs_are_listed_with_their_key_numbers(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(tiny_run, tmp_path / "outputs" / "study" / "whole")
    broken = shutil.copytree(tiny_run, tmp_path / "outputs" / "broken")
    (broken / "metrics.json").write_text("{")
    young = shutil.copytree(tiny_run, tmp_path / "outputs" / "young")
    (young / "metrics.json").unlink()
    (young / "metrics.csv").unlink()
    assert cli.main(["runs", str(tmp_path / "outputs"), "--csv"]) == 0
    rows = {Path(row["run"]).name: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    scores = json.loads((tiny_run / "metrics.json").read_text())
    assert float(rows["whole"]["AP"]) == scores["segm"]["AP"]
    assert (rows["whole"]["step"], rows["whole"]["steps"], rows["whole"]["queries"]) == ("4", "4", "8")
    assert (rows["young"]["step"], rows["young"]["AP"], rows["young"]["problem"]) == ("0", "", "")
    assert rows["broken"]["problem"]
    assert cli.main(["runs", str(tmp_path / "outputs")]) == 0
    assert "colour accuracy" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert "no run in" in _refused(capsys, "runs", str(tmp_path / "empty"))
    assert "no directory" in _refused(capsys, "runs", str(tmp_path / "missing"))


def test_two_runs_are_compared(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first, second = (_copied_run(tiny_run, tmp_path / name) for name in ("first", "second"))
    (second / "predictions.json").write_text("[]")
    scores = json.loads((second / "metrics.json").read_text())
    scores["evaluation"]["predictions"] = f"{zlib.crc32(b'[]'):08x}"
    (second / "metrics.json").write_text(json.dumps(scores))
    assert cli.main(["runs", str(first), str(second), "--csv"]) == 0
    rows = {row["score"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert float(rows["AP"]["first"]) == pytest.approx(json.loads((first / "metrics.json").read_text())["segm"]["AP"])
    assert float(rows["AP"]["second"]) == 0
    assert float(rows["AP"]["low"]) <= float(rows["AP"]["difference"]) <= float(rows["AP"]["high"])
    assert cli.main(["runs", str(first), str(second)]) == 0
    assert "95 % interval" in capsys.readouterr().out
    assert cli.main(["runs", str(first), str(second), str(tmp_path)]) == 0  # three folders are listed
    assert "joint AP" in capsys.readouterr().out
    (second / "metrics.json").unlink()
    assert "workbench eval --ckpt" in _refused(capsys, "runs", str(first), str(second))


def test_trace_prints_a_step(tiny_run: Path, tiny_config: Path, capsys: pytest.CaptureFixture) -> None:
    before = (tiny_run / "checkpoints" / "best" / "model.json").read_bytes()
    assert cli.main(["trace", "--config", str(tiny_config), "--ckpt", str(tiny_run)]) == 0
    printed = capsys.readouterr().out
    for part in ("transformer_decoder.class_embed", "loss_0_subcategory_colour", "update / weight", "norm of all"):
        assert part in printed
    assert (tiny_run / "checkpoints" / "best" / "model.json").read_bytes() == before
    assert "gone" in _refused(capsys, "trace", "--config", str(tiny_config), "--ckpt", "gone")


def test_runs_on_different_datasets_are_not_compared(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first, second = _copied_run(tiny_run, tmp_path / "first"), _copied_run(tiny_run, tmp_path / "second", "other.json")
    message = _refused(capsys, "runs", str(first), str(second))
    assert f"{second} reports other.json; only runs on one dataset can be compared" in message


def _copied_run(run: Path, target: Path, dataset: str | None = None) -> Path:
    """Copy a run; ``dataset`` changes what it says to report."""
    shutil.copytree(run, target)
    best = target / "checkpoints" / "best"
    if dataset is not None:
        model = json.loads((best / "model.json").read_text())
        model["config"]["DATASETS"]["TEST"] = [dataset]
        (best / "model.json").write_text(json.dumps(model))
    return target
