"""Training with detectron2's trainer: its hooks and command line, the workbench's steps, runs and checkpoints."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks

from workbench.config import load_config
from workbench.data.coco import load_data
from workbench.data.loaders import build_train_loader
from workbench.data.mapper import build_mapper
from workbench.detectron2 import workbench_config
from workbench.detectron2.mapper import target_instances
from workbench.detectron2.train_net import Trainer, main, parser, train
from workbench.errors import WorkbenchError
from workbench.models import build_model
from workbench.runs.checkpoint import load_checkpoint, load_model
from workbench.training.weights import load_weights
from workbench.workflows.evaluate import evaluate
from workbench.workflows.train import train as train_here


class SameBatches(Trainer):
    """Trains on the batches of the workbench's own loop."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        config = workbench_config(cfg)
        dataset = load_data(config, config.DATASETS.TRAIN, None, for_training=True)
        loader = build_train_loader(
            dataset,
            build_mapper(config, is_train=True),
            batch_size=config.SOLVER.IMS_PER_BATCH,
            seed=config.SEED,
            num_workers=0,
        )
        return ([{**i, "instances": target_instances(i.pop("targets"))} for i in batch] for batch in loader)


class Recorder(HookBase):
    """Keeps the losses of each step; stops the training in step ``stop``."""

    def __init__(self, stop: int | None = None) -> None:
        self.losses: list[dict[str, float]] = []
        self.stop = stop

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        self.losses.append({name: value for name, (value, _) in latest.items() if "loss" in name})
        if self.trainer.iter + 1 == self.stop:
            raise RuntimeError("killed")


def test_ten_steps_are_those_of_the_workbench_s_loop(host_config: CfgNode, tiny_config: Path, tmp_path: Path) -> None:
    keys = ["SOLVER.MAX_ITER", "10", "DATASETS.TEST", "()", "SOLVER.WARMUP_ITERS", "4", "SOLVER.WARMUP_FACTOR", "0.1"]
    own = train_here(load_config(tiny_config, [*keys, "OUTPUT_DIR", str(tmp_path / "own")]))
    table = pd.read_csv(own / "metrics.csv", float_precision="round_trip")

    host_config.merge_from_list(keys)
    torch.manual_seed(host_config.SEED)
    trainer = SameBatches(host_config)
    batch = next(iter(trainer.build_train_loader(host_config)))
    before = sum(copy.deepcopy(trainer.model)(batch).values())
    recorder = Recorder()
    trainer.register_hooks([recorder])
    trainer.train()
    assert len(recorder.losses) == len(table) == 10
    for expected, losses in zip(table.to_dict("records"), recorder.losses, strict=True):
        assert len(losses) > 8
        assert losses == {name: expected[name] for name in losses}
    weights = load_checkpoint(own).state_dict
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert sum(trainer.model.train()(batch).values()) < before


def test_the_hooks_are_default_trainer_s(host_config: CfgNode) -> None:
    host_config.TEST.PRECISE_BN.ENABLED = True
    kinds = [type(hook) for hook in Trainer(host_config)._hooks]
    for kind in (hooks.IterationTimer, hooks.LRScheduler, hooks.PreciseBN, hooks.PeriodicCheckpointer, hooks.EvalHook):
        assert kind in kinds
    assert kinds[-1] is hooks.PeriodicWriter and issubclass(kinds[-2], hooks.BestCheckpointer)


def test_a_killed_run_is_resumed_and_leaves_what_every_run_leaves(
    host_config: CfgNode, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "hosted"
    words = ["--config-file", str(tiny_config), "--num-gpus", "0", "OUTPUT_DIR", str(output)]
    build_hooks = Trainer.build_hooks
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Trainer, "build_hooks", lambda self: [*build_hooks(self), Recorder(stop=3)])
        main(parser().parse_args(words))
    assert (output / "last_checkpoint").read_text() == "model_0000001.pth"
    assert load_checkpoint(output / "checkpoints" / "last").step == 2
    steps = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "build_hooks", lambda self: [*build_hooks(self), steps])
        main(parser().parse_args(["--resume", *words]))
    assert len(steps.losses) == 2  # the third and the fourth
    for name in ("config.yaml", "metrics.csv", "metrics.json", "predictions.json", "model_final.pth", "log.txt"):
        assert (output / name).is_file(), name
    assert pd.read_csv(output / "metrics.csv")["step"].max() == 4
    assert load_config(output / "config.yaml").SEED == 7

    model, checkpoint = load_model(output)
    assert checkpoint.step == 4 and checkpoint.path.name == "best"
    image = [{"image": torch.zeros(3, 64, 64), "image_id": 1}]
    final = build_model(checkpoint.config, checkpoint.vocabulary)
    report = load_weights(final, output / "model_final.pth")
    assert not report.missing and not report.mismatched
    with torch.no_grad():
        assert torch.equal(final.eval()(image)[0]["scores"], model(image)[0]["scores"])
    scores = json.loads((output / "metrics.json").read_text())
    again = evaluate(output, output=tmp_path / "again")
    assert again["segm"] == scores["segm"] and again["subcategories"] == scores["subcategories"]


def test_a_run_of_the_workbench_s_is_scored_alike(tiny_run: Path, tiny_config: Path, tmp_path: Path) -> None:
    words = ["--config-file", str(tiny_config), "--num-gpus", "0", "--eval-only"]
    keys = ["MODEL.WEIGHTS", str(tiny_run), "OUTPUT_DIR", str(tmp_path)]
    results = main(parser().parse_args([*words, *keys]))
    expected = json.loads((tiny_run / "metrics.json").read_text())
    own = {name: value for name, value in expected["segm"].items() if value is not None}
    assert {name: results["segm"][name] for name in own} == own
    assert results["colour"]["labelled"] == expected["subcategories"]["colour"]["labelled"]


def test_neither_host_trains_into_the_other_s_run(tiny_run: Path, tiny_config: Path) -> None:
    config = load_config(tiny_config, ["OUTPUT_DIR", str(tiny_run)])
    with pytest.raises(WorkbenchError, match="holds a run of the workbench's own trainer"):
        train(config)


def test_a_mistake_is_one_sentence(tiny_config: Path, tmp_path: Path) -> None:
    words = ["--config-file", str(tiny_config), "--num-gpus", "0", "OUTPUT_DIR", str(tmp_path)]
    command = [sys.executable, "-W", "ignore", "-m", "workbench.detectron2.train_net", *words]
    failed = subprocess.run(
        [*command, "DATASETS.TRAIN", "('shapes_trian',)"], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2
    assert "did you mean 'shapes_train'" in failed.stderr.strip().splitlines()[-1]
    assert "Traceback" not in failed.stderr
