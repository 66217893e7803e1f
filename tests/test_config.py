import re
from pathlib import Path

import pytest

from workbench.config import (
    config_from_dict,
    config_to_dict,
    flatten,
    get_cfg,
    keys_without_effect,
    load_config,
    reads,
    to_yaml,
)
from workbench.config_keys import KEYS, one_of, page
from workbench.errors import WorkbenchError
from workbench.training.schedule import scaled_lr

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("configs/*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_config_here_loads_and_sets_nothing_without_effect(path):
    if path.parent.name == "sweeps":  # a list of runs, not a config
        return
    assert keys_without_effect(load_config(path)) == []


def test_a_config_survives_its_own_yaml(tmp_path):
    cfg = load_config(ROOT / "configs/shapes/demo.yaml", ["SOLVER.STEPS", "(10, 20)"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(cfg))
    assert load_config(path) == cfg
    assert config_from_dict(config_to_dict(cfg)) == cfg


def test_whole_numbers_in_a_list_of_rates_are_floats():
    mean = load_config(None, ["MODEL.PIXEL_MEAN", "[3, 1.5, 2]"]).MODEL.PIXEL_MEAN
    assert mean == [3.0, 1.5, 2.0] and set(map(type, mean)) == {float}


def test_a_published_yaml_loads_unchanged(tmp_path):
    """Keys of the published instance-segmentation configs, base and all, the tuples included."""
    (tmp_path / "base.yaml").write_text(
        """
MODEL:
  WEIGHTS: "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  RESNETS: {DEPTH: 50, STEM_TYPE: "basic", STRIDE_IN_1X1: False, RES5_MULTI_GRID: [1, 1, 1]}
DATASETS:
  TRAIN: ("ade20k_instance_train",)
SOLVER:
  STEPS: (135000, 150000)
  CLIP_GRADIENTS: {ENABLED: True, CLIP_TYPE: "full_model", CLIP_VALUE: 0.01}
INPUT:
  MIN_SIZE_TRAIN: !!python/object/apply:eval ["[int(x * 0.1 * 640) for x in range(5, 8)]"]
  DATASET_MAPPER_NAME: mask_former_instance
"""
    )
    (tmp_path / "published.yaml").write_text(
        "_BASE_: base.yaml\nMODEL: {META_ARCHITECTURE: MaskFormer, MASK_FORMER: {DEC_LAYERS: 10}}\n"
    )
    cfg = load_config(tmp_path / "published.yaml")
    assert cfg.DATASETS.TRAIN == ("ade20k_instance_train",)
    assert cfg.SOLVER.STEPS == (135000, 150000)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (320, 384, 448)
    assert "INPUT.MIN_SIZE_TRAIN" not in keys_without_effect(cfg)


def test_only_the_published_expression_is_read_from_yaml(tmp_path):
    """Edges of a published config are computed without evaluating anything; other expressions are refused."""
    path = tmp_path / "evil.yaml"
    for expression in ("[int(x * 0.1 * 640) for x in range(5, 21)] + [1]", "__import__('os').getcwd()"):
        path.write_text(f'INPUT: {{MIN_SIZE_TRAIN: !!python/object/apply:eval ["{expression}"]}}')
        with pytest.raises(WorkbenchError, match="no code is evaluated"):
            load_config(path)
    path.write_text("INPUT: {MIN_SIZE_TRAIN: !!python/object/apply:os.system [ls]}")
    with pytest.raises(WorkbenchError, match="no code is evaluated"):
        load_config(path)


def test_every_key_without_effect_is_named_when_a_config_is_loaded(tmp_path, caplog):
    """Also those that are set to their defaults, and those that only another part would read."""
    path = tmp_path / "config.yaml"
    path.write_text(
        """
MODEL: {BACKBONE: {NAME: D2SwinTransformer}, RESNETS: {DEPTH: 50, STEM_TYPE: basic}, SWIN: {EMBED_DIM: 96}}
DATALOADER: {SAMPLER_TRAIN: TrainingSampler}
INPUT: {DATASET_MAPPER_NAME: mask_former_instance, MIN_SCALE: 0.1, MIN_SIZE_TRAIN: [640]}
SOLVER: {LR_SCHEDULER_NAME: WarmupPolyLR, STEPS: [10], MAX_ITER: 20}
"""
    )
    cfg = load_config(path, ["TEST.AUG.FLIP", "False"])
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "config keys without effect here: DATALOADER.SAMPLER_TRAIN, INPUT.MIN_SCALE, MODEL.RESNETS.DEPTH, "
        "MODEL.RESNETS.STEM_TYPE, SOLVER.STEPS, TEST.AUG.FLIP"
    )
    path.write_text(to_yaml(cfg))  # a run's config.yaml, which sets every key
    assert load_config(path, saved=True) == cfg and len(caplog.records) == 1


def test_a_config_that_sets_every_key_lists_all_those_that_nothing_reads(tmp_path, caplog):
    (tmp_path / "config.yaml").write_text(to_yaml(get_cfg()))
    cfg = load_config(tmp_path / "config.yaml")
    (line,) = [record.getMessage() for record in caplog.records]
    listed = line.removeprefix("config keys without effect here: ").split(", ")
    assert listed == sorted(name for name, key in KEYS.items() if key.unread or not reads(cfg, name))
    assert {"DATALOADER.SAMPLER_TRAIN", "VIS_PERIOD", "MODEL.SWIN.DEPTHS", "TEST.EXPECTED_RESULTS"} <= set(listed)


def test_every_key_that_is_not_listed_is_read_somewhere():
    """A key whose only legal value is its default needs no reader."""
    code = "".join(p.read_text() for p in ROOT.glob("workbench/**/*.py") if p.name != "config_keys.py")
    unread = [
        name
        for name, key in KEYS.items()
        if not key.unread and key.rule.wanted != one_of(key.default).wanted
        if not re.search(rf"[.\"]{name.rsplit('.')[-1]}\b", code)
    ]
    # Which keys a file may set does not depend on VERSION, and QK_SCALE may only be None.
    assert unread == ["VERSION", "MODEL.SWIN.QK_SCALE"]


def test_a_part_of_ones_own_may_read_any_key():
    cfg = load_config(None, ["MODEL.BACKBONE.NAME", "mine", "INPUT.DATASET_MAPPER_NAME", "mine"])
    assert reads(cfg, "MODEL.RESNETS.DEPTH") and reads(cfg, "INPUT.MIN_SCALE") and reads(cfg, "INPUT.CROP.ENABLED")
    assert not reads(load_config(None, ["MODEL.BACKBONE.NAME", "timm/resnet18"]), "MODEL.RESNETS.DEPTH")


@pytest.fixture
def recipe(tmp_path):
    """A published recipe, and one on fewer GPUs that was scaled by hand."""
    (tmp_path / "base.yaml").write_text(
        "SOLVER: {IMS_PER_BATCH: 16, BASE_LR: 0.02, MAX_ITER: 900, STEPS: [600, 800], WARMUP_ITERS: 100}\n"
    )
    (tmp_path / "small.yaml").write_text("_BASE_: base.yaml\nSOLVER: {IMS_PER_BATCH: 2, BASE_LR: 0.0025}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "overrides", "rate", "steps"),
    [
        ("base", "", 0.02, [900, 600, 800, 100]),
        ("small", "", 0.0025, [7200, 4800, 6400, 800]),  # the rate was scaled by hand, the schedule was not
        ("base", "SOLVER.IMS_PER_BATCH 2", 0.0025, [7200, 4800, 6400, 800]),
        ("base", "SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.0025", 0.0025, [7200, 4800, 6400, 800]),
        ("small", "SOLVER.IMS_PER_BATCH 4", 0.005, [3600, 2400, 3200, 400]),
        ("base", "SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 50", 0.0025, [50, 4800, 6400, 800]),
        ("base", "SOLVER.IMS_PER_BATCH 2 SOLVER.LR_SCALING none", 0.02, [900, 600, 800, 100]),
        ("base", "SOLVER.IMS_PER_BATCH 2 SOLVER.BASE_LR 0.02 SOLVER.REFERENCE_BATCH_SIZE 16", 0.0025, None),
    ],
)
def test_rates_and_schedules_belong_to_the_batch_that_they_were_written_for(recipe, name, overrides, rate, steps):
    cfg = load_config(recipe / f"{name}.yaml", overrides.split())
    assert scaled_lr(cfg) == pytest.approx(rate)
    solver = cfg.SOLVER
    assert steps is None or [solver.MAX_ITER, *solver.STEPS, solver.WARMUP_ITERS] == steps
    (recipe / "saved.yaml").write_text(to_yaml(cfg))
    assert load_config(recipe / "saved.yaml") == cfg  # nothing is scaled twice


def test_a_swin_whose_heads_do_not_divide_its_channels_is_refused():
    cfg = ["MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.NUM_HEADS", "[3, 6, 12, 20]"]
    with pytest.raises(WorkbenchError, match="MODEL.SWIN.EMBED_DIM 96 and MODEL.SWIN.NUM_HEADS"):
        load_config(None, cfg)
    with pytest.raises(WorkbenchError, match="MODEL.SWIN.APE is True; it must be one of False"):
        load_config(None, ["MODEL.SWIN.APE", "True"])


def test_keys_of_another_model_have_no_effect():
    overrides = ["MODEL.MASK_FORMER.DROPOUT", "0.1", "TEST.ONE_CLASS_PER_QUERY", "True", "MODEL.FPN.OUT_CHANNELS", "64"]
    queries, pyramid = ["MODEL.MASK_FORMER.DROPOUT", "TEST.ONE_CLASS_PER_QUERY"], ["MODEL.FPN.OUT_CHANNELS"]
    for model, unused in {"MaskFormer": pyramid, "GeneralizedRCNN": queries, "Own": []}.items():
        cfg = load_config(None, [*overrides, "MODEL.META_ARCHITECTURE", model])
        assert sorted(keys_without_effect(cfg)) == sorted(unused)


def test_flatten_joins_nested_keys():
    nested = {"a": {"b": {"c": 1}, "d": [2]}, "e": {}, "f": None}
    assert flatten(nested) == {"a.b.c": 1, "a.d": [2], "f": None}
    assert flatten(nested, "/") == {"a/b/c": 1, "a/d": [2], "f": None}
    assert flatten(get_cfg())["TEST.AUG.FLIP"] is True


def test_nothing_in_a_yaml_is_evaluated(tmp_path):
    path = tmp_path / "bad.yaml"
    for code in ("!!python/object/apply:eval ['print(1)']", "!!python/object/apply:os.system ['true']"):
        path.write_text(f"INPUT: {{MIN_SIZE_TRAIN: {code}}}\n")
        with pytest.raises(WorkbenchError, match="not readable YAML.*write the value out"):
            load_config(path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SOLVER.BSE_LR", "1"], r"unknown config key SOLVER.BSE_LR \(did you mean 'SOLVER.BASE_LR'\?\)"),
        (["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR must be a number, not 'fast'"),
        (["SOLVER.MAX_ITER", "1.5"], "SOLVER.MAX_ITER must be a whole number, not 1.5"),
        (["MODEL.MASK_ON", "1"], "MODEL.MASK_ON must be True or False"),
        (["DATASETS.TRAIN", "shapes_train"], "DATASETS.TRAIN must be a list"),
        (["SOLVER", "1"], "SOLVER is a group of keys"),
        (["SOLVER.BASE_LR"], "KEY VALUE pairs"),
        (["TEST.RANK_BY", "best"], "TEST.RANK_BY is 'best'; it must be one of main, sum, geometric_mean"),
        (["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH is 0; it must be at least 1"),
        (["TEST.MAX_DETS", "[0]"], "TEST.MAX_DETS"),
        (["INPUT.MIN_SCALE", "3.0"], "MIN_SCALE <= MAX_SCALE"),
        (["MODEL.SMALL_RESNET.DEPTHS", "[1, 1, 1]"], "WIDTHS .* and MODEL.SMALL_RESNET.DEPTHS .* two lengths"),
        (
            ["SOLVER.OPTIMIZER", "SGD", "SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0"],
            "MOMENTUM must then be above 0",
        ),
        (["MODEL.SEM_SEG_HEAD.IN_FEATURES", "['res2', 'res3', 'res4']"], "names res5, which .*IN_FEATURES"),
        (["MODEL.SEM_SEG_HEAD.CONVS_DIM", "252"], "252 channels cannot be shared among 8 heads"),
        (["MODEL.MASK_FORMER.HIDDEN_DIM", "10", "MODEL.MASK_FORMER.NHEADS", "5"], "a multiple of 4 and of the heads"),
    ],
)
def test_a_bad_key_or_value_is_one_sentence(overrides, message):
    with pytest.raises(WorkbenchError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize(
    ("keys", "values", "allowed"),
    [
        ("HIDDEN_DIM NHEADS NUM_OBJECT_QUERIES TRAIN_NUM_POINTS SIZE_DIVISIBILITY", "0 -1", "at least"),
        ("DEC_LAYERS DIM_FEEDFORWARD NUM_OBJECT_QUERIES HIDDEN_DIM NHEADS", "1000000000", "at most"),
        ("DROPOUT", "-0.1 1.0", "at least 0 and below 1"),
        ("DROPOUT SUBCATEGORY_COST CLASS_WEIGHT OVERSAMPLE_RATIO", "nan inf 1e999 None []", "a number"),
        ("SUBCATEGORY_COST SUBCATEGORY_WEIGHT NO_OBJECT_WEIGHT MASK_WEIGHT", "-1 1e30", "at least 0 and at most"),
        ("IMPORTANCE_SAMPLE_RATIO", "-0.5 1.5", "at least 0 and at most 1"),
        (
            "MODEL.SEM_SEG_HEAD.IN_FEATURES",
            "['res9'] [] ['res2','res2','res3'] [2]",
            "each one of res2, res3, res4, res5",
        ),
        ("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", "0 3 64", "one of 4, 8, 16, 32"),
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM MODEL.SEM_SEG_HEAD.MASK_DIM", "0 -64 100000", "at least"),
        ("MODEL.PIXEL_MEAN", "[] [1,2] [1,2,1e999] ['a','b','c'] [True,True,True]", "a list of 3 values"),
        ("MODEL.PIXEL_STD", "[0,1,1] [-1,1,1] []", "a list of 3 values"),
        ("MODEL.BACKBONE.FREEZE_AT", "-1 6", "at least 0 and at most 5"),
        ("MODEL.RESNETS.RES5_DILATION", "0 3", "one of 1, 2, 4"),
        (
            "MODEL.SMALL_RESNET.WIDTHS MODEL.SMALL_RESNET.DEPTHS",
            "[] [0,0,0,0] [8.5,8,8] [-8,8,8,8]",
            "a list of values",
        ),
        ("MODEL.MOBILENET.TAPS MODEL.SUBCATEGORIES", "[-1] [None]", "a list of values"),
        ("MODEL.DEVICE", "gpu cuda: cuda:-1", "one of auto, cpu"),
        ("INPUT.IMAGE_SIZE", "0 -5 1000000000", "at least 1 and at most 65536"),
        ("INPUT.MIN_SIZE_TEST INPUT.MAX_SIZE_TEST", "-1 10000000000", "at least 0"),
        ("INPUT.MIN_SCALE INPUT.MAX_SCALE", "0 -1 1e9", "above 0 and at most 1000"),
        ("DATASETS.TRAIN DATASETS.VAL DATASETS.TEST", "[''] [3] ['a\\0']", "each one line of text"),
        ("DATALOADER.NUM_WORKERS", "-1 1000000", "at least 0 and at most 1024"),
        ("SOLVER.IMS_PER_BATCH", "100000000000", "at most 1000000"),
        ("SOLVER.ACCUMULATION_STEPS SOLVER.REFERENCE_BATCH_SIZE", "0 -1", "at least 1"),
        (
            "SOLVER.BASE_LR SOLVER.GAMMA SOLVER.WEIGHT_DECAY SOLVER.BIAS_LR_FACTOR",
            "-1 1e30",
            "at least 0 and at most 1000",
        ),
        ("SOLVER.WEIGHT_DECAY_BIAS", "-1 abc [1]", "None"),
        ("SOLVER.EMA_DECAY SOLVER.MOMENTUM", "-0.1 1 2", "at least 0 and below 1"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE SOLVER.CLIP_GRADIENTS.NORM_TYPE", "0 -1", "above 0"),
        ("SOLVER.MAX_ITER SOLVER.CHECKPOINT_PERIOD TEST.EVAL_PERIOD SOLVER.WARMUP_ITERS", "-1", "at least 0"),
        ("SOLVER.STEPS", "[-1] ['a'] [1.5]", "a list of values, each at least 0"),
        ("TEST.MAX_DETS", "[] [0] [1.5] [True]", "a list of values, each at least 1"),
        ("TEST.DETECTIONS_PER_IMAGE", "0 -1", "at least 1"),
        ("SEED", "-2 9223372036854775808 18446744073709551616", "at least -1 and at most 9223372036854775807"),
        ("OUTPUT_DIR", "'' 'a\\nb'", "one line of text, not empty"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(keys, values, allowed):
    for key in keys.split():
        name = key if "." in key or key in KEYS else f"MODEL.MASK_FORMER.{key}"
        for value in values.split():
            with pytest.raises(WorkbenchError) as refused:
                load_config(None, [name, value])
            sentence = str(refused.value)
            assert name in sentence and allowed in sentence and len(sentence) < 400 and "\n" not in sentence, sentence


def test_values_of_any_length_are_refused_in_a_short_sentence():
    for value in ("9" * 5000, "0x" + "f" * 9000, "[" * 5000, "'" + "x" * 10**5 + "'", "\ud800"):
        for key in ("SEED", "SOLVER.BASE_LR", "OUTPUT_DIR", "MODEL.PIXEL_MEAN"):
            with pytest.raises(WorkbenchError, match=key) as refused:
                load_config(None, [key, value])
            assert len(str(refused.value)) < 300


def test_every_default_fits_its_rule_and_the_page_is_the_table():
    assert load_config(None) == get_cfg()
    assert all(key.meaning.endswith(".") and "|" not in key.meaning + key.rule.wanted for key in KEYS.values())
    assert (ROOT / "docs/config.md").read_text(encoding="utf-8") == page()


def test_numbers_are_read_as_people_write_them(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("SOLVER: {BASE_LR: 1e-4, WEIGHT_DECAY: 1}\n")  # YAML reads 1e-4 as text
    cfg = load_config(path, ["INPUT.MAX_SCALE", "2", "DATASETS.TRAIN", "('a', 'b')"])
    assert cfg.SOLVER.BASE_LR == 1e-4 and cfg.SOLVER.WEIGHT_DECAY == 1.0 and cfg.INPUT.MAX_SCALE == 2.0
    assert cfg.DATASETS.TRAIN == ("a", "b")


def test_bases_in_a_circle_and_missing_ones_are_named(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml\n")
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    with pytest.raises(WorkbenchError, match="circle"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("_BASE_: c.yaml\n")
    with pytest.raises(WorkbenchError, match=r"c.yaml \(the _BASE_ of .*b.yaml\) cannot be read"):
        load_config(tmp_path / "a.yaml")
    with pytest.raises(WorkbenchError, match="nowhere.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_loaded_config_is_frozen_and_the_defaults_are_not_shared():
    with pytest.raises(AttributeError):
        load_config(None).SEED = 3
    get_cfg().MODEL.PIXEL_MEAN[0] = 0.0
    assert get_cfg().MODEL.PIXEL_MEAN[0] == 123.675


def test_a_scorer_of_earlier_versions_gives_way_with_a_log_line(caplog):
    """Checkpoints of earlier versions name it in their model.json and must still load."""
    saved = config_to_dict(load_config(None))
    saved["TEST"]["SCORER"] = "faster-coco-eval"
    assert config_from_dict(saved, "checkpoints/best").TEST.SCORER == "hotcoco"
    assert "checkpoints/best: TEST.SCORER faster-coco-eval is gone; hotcoco takes its place" in caplog.text
