"""Training with detectron2's trainer: its hooks and command line, the workbench's steps, runs and checkpoints."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import HookBase, default_argument_parser, hooks
from torch import nn

from tests.weights import published
from tests.workflows.test_baselines import MODELS
from workbench.config import changes, load_config
from workbench.data.coco import load_data
from workbench.data.loaders import build_train_loader
from workbench.data.mapper import build_mapper
from workbench.detectron2 import add_workbench_config, register_datasets, workbench_config
from workbench.detectron2.data import target_instances
from workbench.detectron2.train_net import Trainer, WorkbenchCheckpointer, main, run
from workbench.errors import WorkbenchError
from workbench.models import build_model
from workbench.runs.checkpoint import load_checkpoint, load_model
from workbench.runs.directory import read_metrics
from workbench.training.schedule import scaled_lr
from workbench.training.weights import load_weights
from workbench.workflows.evaluate import evaluate
from workbench.workflows.train import train as train_here

ROOT = Path(__file__).parents[2]


def command(*words: object) -> None:
    """Do what the command line with these words does."""
    main(["--num-gpus", "0", *map(str, words)])


def hosted(config: CfgNode) -> CfgNode:
    """Return detectron2's config of a workbench config, its datasets registered."""
    cfg = get_cfg()
    add_workbench_config(cfg, config)
    register_datasets(config)
    return cfg


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
    bn, saving = hooks.PreciseBN, hooks.PeriodicCheckpointer
    assert kinds[:6] == [hooks.IterationTimer, hooks.LRScheduler, bn, saving, hooks.EvalHook, hooks.PeriodicWriter]
    assert kinds[6:] == [hooks.BestCheckpointer, hooks.CallbackHook]


def test_precise_bn_replaces_running_averages_by_true_ones(host_config: CfgNode) -> None:
    host_config.TEST.PRECISE_BN.ENABLED, host_config.TEST.PRECISE_BN.NUM_ITER = True, 3
    host_config.SOLVER.MAX_ITER, host_config.DATASETS.TEST = 1, ()
    trainer = SameBatches(host_config)
    norm = next(module for module in trainer.model.modules() if isinstance(module, nn.BatchNorm2d))
    means: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda module, args: means.append(args[0].mean((0, 2, 3)).detach()))
    trainer.train()
    assert len(means) == 4  # one of the training step, three of PreciseBN
    torch.testing.assert_close(norm.running_mean, torch.stack(means[1:]).mean(0))
    norm_of_run = WorkbenchCheckpointer(trainer.model, trainer.cfg.OUTPUT_DIR, cfg=trainer.cfg).run.last
    saved = load_checkpoint(norm_of_run).state_dict
    name = next(name for name, module in trainer.model.named_modules() if module is norm)
    assert torch.equal(saved[f"{name}.running_mean"], norm.running_mean)


def test_a_killed_run_is_resumed_and_leaves_what_every_run_leaves(
    host_config: CfgNode, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "hosted"
    words = ["--config-file", tiny_config, "OUTPUT_DIR", output]
    build_hooks = Trainer.build_hooks
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Trainer, "build_hooks", lambda self: [*build_hooks(self), Recorder(stop=3)])
        command(*words)
    assert (output / "last_checkpoint").read_text() == "model_0000001.pth"
    assert load_checkpoint(output / "checkpoints" / "last").step == 2
    steps = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "build_hooks", lambda self: [*build_hooks(self), steps])
        command("--resume", *words)
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
    before = (tiny_run / "config.yaml").read_bytes()
    keys = ["MODEL.WEIGHTS", tiny_run, "OUTPUT_DIR", shutil.copytree(tiny_run, tmp_path / "run")]
    args = default_argument_parser().parse_args(["--num-gpus", "0", "--eval-only"])
    args.imports = []
    results = run(load_config(tiny_config, [str(key) for key in keys], saved=True), args)
    expected = json.loads((tiny_run / "metrics.json").read_text())
    own = {name: value for name, value in expected["segm"].items() if value is not None}
    assert {name: results["segm"][name] for name in own} == own
    assert results["colour"]["labelled"] == expected["subcategories"]["colour"]["labelled"]
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_neither_host_trains_into_the_other_s_run(tiny_run: Path, tiny_config: Path) -> None:
    with pytest.raises(WorkbenchError, match="holds a run of the workbench's own trainer"):
        command("--config-file", tiny_config, "OUTPUT_DIR", tiny_run)


@pytest.mark.parametrize("model", MODELS)
def test_the_baselines_are_trained_too(model: str, tiny_config: Path, tmp_path: Path) -> None:
    """By the names that the workbench's YAML files have for them, which detectron2 has too."""
    keys = {"MODEL.META_ARCHITECTURE": model, "OUTPUT_DIR": tmp_path, "MODEL.FPN.OUT_CHANNELS": 16, **MODELS[model]}
    command("--config-file", tiny_config, *(part for pair in keys.items() for part in pair))
    trained, checkpoint = load_model(tmp_path)
    assert changes(checkpoint.config)["MODEL.META_ARCHITECTURE"][0] == model
    assert type(trained).__module__.startswith("workbench.")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["subcategories"].keys() == {"colour", "texture"}
    assert any("subcategory_colour" in column for column in read_metrics(tmp_path / "metrics.csv")[-2])


def test_a_published_file_drives_both_hosts(shapes_root: Path, tmp_path: Path) -> None:
    keys = {
        "DATASETS.ROOT": shapes_root,
        "DATASETS.TRAIN": ("shapes_train",),
        "DATASETS.TEST": ("shapes_val",),
        "DATALOADER.NUM_WORKERS": 0,
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.WEIGHTS": "none",
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_DIM_FEEDFORWARD": 32,
        "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
        "MODEL.MASK_FORMER.DEC_LAYERS": 2,
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
        "TEST.DETECTIONS_PER_IMAGE": 5,
        "INPUT.IMAGE_SIZE": 64,
        "INPUT.MIN_SIZE_TEST": 64,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 1,
        "SEED": 3,
    }
    words = [str(part) for pair in keys.items() for part in pair]
    path = ROOT / "configs" / "coco" / "mask2former_R50.yaml"
    own = train_here(load_config(path, [*words, "OUTPUT_DIR", str(tmp_path / "own")]))
    command("--config-file", path, *words, "OUTPUT_DIR", tmp_path / "hosted")
    trained = [load_checkpoint(folder) for folder in (own, tmp_path / "hosted")]
    assert set(changes(*(checkpoint.config for checkpoint in trained))) == {"OUTPUT_DIR", "SOLVER.AMP.ENABLED"}
    assert trained[0].config.SOLVER.REFERENCE_BATCH_SIZE == 16 and trained[0].config.SOLVER.MAX_ITER == 1
    assert trained[0].state_dict.keys() == trained[1].state_dict.keys()
    assert all((folder / "metrics.json").is_file() for folder in (own, tmp_path / "hosted"))


@pytest.mark.parametrize("kind", [".pkl", ".pth"])
def test_a_checkpoint_of_the_model_zoo_gives_both_hosts_the_same_weights(
    kind: str, tiny_config: Path, tmp_path: Path
) -> None:
    backbone = published.swin(12, (1, 1, 2, 1), (1, 2, 3, 4), 7)
    state = published.random_state(published.mask2former(backbone, (12, 24, 48, 96), classes=5, dim=64, heads=8))
    path = tmp_path / f"model_final{kind}"
    if kind == ".pkl":
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody", "matching_heuristics": True}))
    else:
        torch.save({"model": state, "iteration": 99}, path)
    keys = {
        "WEIGHTS": path,
        "SUBCATEGORIES": [],
        "BACKBONE.NAME": "D2SwinTransformer",
        "SWIN.EMBED_DIM": 12,
        "SWIN.DEPTHS": [1, 1, 2, 1],
        "SWIN.NUM_HEADS": [1, 2, 3, 4],
        "SEM_SEG_HEAD.CONVS_DIM": 64,
        "SEM_SEG_HEAD.MASK_DIM": 64,
        "SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 2,
        "SEM_SEG_HEAD.TRANSFORMER_DIM_FEEDFORWARD": 48,
        "SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,
        "MASK_FORMER.HIDDEN_DIM": 64,
        "MASK_FORMER.NHEADS": 8,
        "MASK_FORMER.NUM_OBJECT_QUERIES": 5,
        "MASK_FORMER.DIM_FEEDFORWARD": 40,
        "MASK_FORMER.DEC_LAYERS": 4,
    }
    words = [part for key, value in keys.items() for part in (f"MODEL.{key}", str(value))]
    config = load_config(tiny_config, [*words, "OUTPUT_DIR", str(tmp_path / "run")])
    trainer = Trainer(hosted(config))
    trainer.resume_or_load(resume=False)
    own = build_model(config, load_data(config, config.DATASETS.TRAIN, None).vocabulary, pretrained=False)
    report = load_weights(own, path)
    assert len(report.loaded) > 100 and not report.missing and not report.mismatched and not report.unexpected
    weights = trainer.model.state_dict()
    assert weights.keys() == own.state_dict().keys()
    for name, value in own.state_dict().items():
        assert torch.equal(weights[name], value), name


def test_the_learning_rate_follows_the_batch_and_the_processes(tiny_config: Path, tmp_path: Path) -> None:
    keys = ["SOLVER.IMS_PER_BATCH", "8", "SOLVER.REFERENCE_WORLD_SIZE", "2", "OUTPUT_DIR", str(tmp_path)]
    config = load_config(tiny_config, keys)  # 8 images on two processes are 4 on one
    trainer = Trainer(hosted(config))
    assert trainer.cfg.SOLVER.IMS_PER_BATCH == 4 and trainer.max_iter == 2 * config.SOLVER.MAX_ITER
    assert max(group["initial_lr"] for group in trainer.optimizer.param_groups) == pytest.approx(scaled_lr(config) / 2)


def test_a_mistake_is_one_sentence(tiny_config: Path, tmp_path: Path) -> None:
    words = ["--config-file", str(tiny_config), "--num-gpus", "0", "OUTPUT_DIR", str(tmp_path)]
    command = [sys.executable, "-W", "ignore", "-m", "workbench.detectron2.train_net", *words]
    failed = subprocess.run(
        [*command, "DATASETS.TRAIN", "('shapes_trian',)"], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2
    assert "did you mean 'shapes_train'" in failed.stderr.strip().splitlines()[-1]
    assert "Traceback" not in failed.stderr
