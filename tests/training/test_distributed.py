"""Two processes on the CPU train and evaluate as one does, and fail together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training import toy
from workbench.errors import WorkbenchError
from workbench.runs.directory import read_metrics
from workbench.training.distributed import gather, precision, run_on_all, run_on_main, start_processes

ROOT = Path(__file__).parents[2]
MEASURED = ("seconds", "data_seconds", "peak_memory_mb")


def launch(*command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def assert_same_numbers(one: Path, two: Path, tolerance: float) -> None:
    """Every number of two metrics.csv agrees."""
    first, second = read_metrics(one / "metrics.csv"), read_metrics(two / "metrics.csv")
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - set(MEASURED):
            assert (a[name] == "") == (b[name] == ""), name
            if a[name]:
                assert float(a[name]) == pytest.approx(float(b[name]), rel=tolerance, abs=1e-6), (
                    a["step"],
                    name,
                )


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    output = tmp_path_factory.mktemp("two")
    script = str(ROOT / "tests" / "training" / "two_processes.py")
    launch("torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, str(output))
    return output, [json.loads((output / f"facts_{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_share_the_global_batch(facts: tuple[Path, list[dict]]) -> None:
    _, (main, other) = facts
    assert main["processes"] == other["processes"] == 2
    assert (main["images"], other["images"]) == ([0, 1], [2, 3])
    assert main["weights"] == other["weights"]


def test_two_processes_train_as_one(facts: tuple[Path, list[dict]], tmp_path: Path) -> None:
    toy.trainer(toy.config(tmp_path, SOLVER_EMA_DECAY=0.9), dropout=0.0).train()
    assert_same_numbers(tmp_path, facts[0] / "run", tolerance=2e-4)


def test_what_one_process_says_reaches_the_other(facts: tuple[Path, list[dict]]) -> None:
    _, (main, other) = facts
    assert (main["gathered"], other["gathered"]) == ([0, 10], [])
    assert main["from_main"] == other["from_main"] == {"rank": 0}


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("main_failed", "the disk is full"),
        ("one_failed", "image 7 is broken"),
        ("not_finite", "loss_ce, loss_size became nan in step 1"),
        ("does_not_divide", "multiple of 2"),
        ("one_gpu_for_two", "each process takes its own"),
    ],
)
def test_an_error_in_one_process_is_raised_in_all(facts: tuple[Path, list[dict]], what: str, expected: str) -> None:
    for each in facts[1]:
        assert expected in each[what]


def test_each_process_keeps_its_part_of_a_batch_that_failed(facts: tuple[Path, list[dict]]) -> None:
    kept = sorted((facts[0] / "broken" / "nonfinite").iterdir())
    assert [place.name for place in kept] == ["step_0000001_process_0", "step_0000001_process_1"]
    losses = [json.loads((place / "batch.json").read_text())["losses"]["loss_ce"] for place in kept]
    assert isinstance(losses[0], float) and losses[1] == "nan"


def test_batch_norm_is_over_the_global_batch(facts: tuple[Path, list[dict]]) -> None:
    assert max(each["batch_norm"] for each in facts[1]) < 1e-4


def test_invariant_12_cpu_means_cpu(facts: tuple[Path, list[dict]]) -> None:
    assert [each["device"] for each in facts[1]] == ["cpu", "cpu"]


def test_accelerate_launch_trains_and_evaluates_the_model_as_one_process(
    tiny_run: Path, tiny_config: Path, tmp_path: Path
) -> None:
    output = launch(
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m", "workbench.cli"),
        *("train", "--config", str(tiny_config), "--output", str(tmp_path / "run")),
    )
    assert "process 0 uses cpu" in output and "process 1 uses cpu" in output
    assert_same_numbers(tiny_run, tmp_path / "run", tolerance=2e-3)
    rows = [json.loads((path / "predictions.json").read_text()) for path in (tiny_run, tmp_path / "run")]
    assert len(rows[0]) == len(rows[1]) > 0
    assert [row["image_id"] for row in rows[0]] == [row["image_id"] for row in rows[1]]


def test_alone_the_exchange_is_a_plain_call() -> None:
    assert run_on_main(lambda: 3) == run_on_all(lambda: 3) == 3
    assert gather("x") == ["x"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
            "WORLD_SIZE is 2, .* MASTER_ADDR, MASTER_PORT is not set",
        ),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', which is no number of processes"),
        ({"ACCELERATE_DYNAMO_BACKEND": "magic"}, "variables of accelerate: ACCELERATE_DYNAMO_BACKEND"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED.*: DeepSpeed is not installed"),
    ],
)
def test_a_launcher_that_cannot_be_followed_is_one_sentence(
    variables: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WorkbenchError, match=said):
        start_processes(toy.config(tmp_path))


@pytest.mark.parametrize("name", ["LOCAL_RANK", "RANK"])
def test_a_variable_of_another_job_is_ignored(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "3")
    assert start_processes(toy.config(tmp_path)).accelerator.num_processes == 1


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkbenchError, match="MODEL.DEVICE is 'cuda:99'"):
        start_processes(toy.config(tmp_path, MODEL_DEVICE="cuda:99"))


@pytest.mark.parametrize(
    ("kind", "device", "expected"),
    [
        ("float16", "cpu", "no"),
        ("float16", "cuda", "fp16"),
        ("bfloat16", "cpu", "bf16"),
        ("bfloat16", "cuda", "bf16"),
    ],
)
def test_mixed_precision_is_what_the_device_can_do(tmp_path: Path, kind: str, device: str, expected: str) -> None:
    cfg = toy.config(tmp_path).clone()
    cfg.defrost()
    cfg.SOLVER.AMP.update({"ENABLED": True, "DTYPE": kind})
    assert precision(cfg, torch.device(device)) == expected
    cfg.SOLVER.AMP.ENABLED = False
    assert precision(cfg, torch.device(device)) == "no"


def test_a_second_run_in_one_interpreter_may_change_the_precision(tmp_path: Path) -> None:
    cfg = toy.config(tmp_path).clone()
    cfg.defrost()
    assert start_processes(cfg).accelerator.mixed_precision == "no"
    cfg.SOLVER.AMP.ENABLED = True
    assert start_processes(cfg).accelerator.mixed_precision == "bf16"


LOSES_ITS_PEER = """
import os, signal, sys
from tests.training import toy
from workbench import cli
from workbench.training.distributed import rank

def run(args):
    cfg = toy.config(sys.argv[1], TEST_EVAL_PERIOD=0)
    cfg.defrost()
    cfg.PROCESS_TIMEOUT = 4.0
    plain = toy.batches_of(cfg)
    def batches(first):
        for step, batch in enumerate(plain(first), start=first):
            if step == 4 and rank() == 1:
                os.kill(os.getpid(), getattr(signal, sys.argv[2]))
            yield batch
    toy.trainer(cfg, batches=batches, evaluate=None).train()

cli.COMMANDS["env"] = cli.COMMANDS["env"]._replace(run=run)
sys.exit(cli.main(["env"]))
"""


@pytest.mark.parametrize("fate", ["SIGKILL", "SIGSTOP"])
def test_a_process_that_loses_another_ends_with_one_sentence(fate: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = []
    for index in "01":
        environment = {**os.environ, **shared, "PYTHONPATH": str(ROOT), "RANK": index, "LOCAL_RANK": index}
        command = [sys.executable, "-c", LOSES_ITS_PEER, str(tmp_path), fate]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT))
    main, other = processes
    said = main.communicate()[1]
    other.kill()
    other.communicate()
    assert main.returncode == 2
    (line,) = [line for line in said.splitlines() if line.startswith("workbench: error: ")]
    assert "process 0 of 2 lost another one" in line and f"continues from the checkpoint {tmp_path}" in line
    assert "Traceback" not in said
