"""The tables: value by place, and what is expected of the command that meets it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults import oracles
from tests.faults.harness import Case
from tests.faults.values import (
    GONE,
    TEXTS,
    THINGS,
    YAML_VALUES,
    damages,
    places,
    put_bytes,
    put_json,
    shown,
    to_folder,
    to_loop,
    to_nothing,
)
from tests.faults.workplace import (
    CATALOG,
    CONFIG,
    EXPORTS,
    FILTERS,
    PHOTO,
    RESULTS,
    RUN,
    SWEEP,
    TRAIN,
    VAL,
)

BEST, LAST = f"{RUN}/checkpoints/best", f"{RUN}/checkpoints/last"
STEP = ("SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0")  # appended first, so that a case may change them
PREDICT = ("predict", "--ckpt", BEST, "--output", "out", PHOTO)
SCORE = ("eval", "--json", "--predictions", RESULTS, "--annotations", VAL)
RUN_FILES = ("metrics.json", "predictions.json", "config.yaml", "checkpoints")


def config_values(seeds: range) -> Iterator[Case]:
    """Every config key with every hostile value, on the command line and in YAML."""
    from workbench.config_keys import KEYS

    for key in KEYS:
        for text in TEXTS:
            yield Case(
                key,
                shown(text),
                [("train", "--config", CONFIG, "--output", "new", *STEP, key, text)],
                [key, key.rsplit(".", 1)[-1], key.rsplit(".", 1)[-1].lower()],
                wrong=oracles.trained("new"),
                kept=["shapes", CONFIG, RUN],
            )
        for text in YAML_VALUES:
            yield Case(
                f"{CONFIG} {key}",
                text,
                [("train", "--config", "bad.yaml", "--output", "new")],
                [key, "bad.yaml", key.rsplit(".", 1)[-1]],
                break_it=_nested_yaml(key, text),
                wrong=oracles.trained("new"),
            )
    for key in KEYS:
        if key.startswith(("TEST.", "INPUT.", "MODEL.MASK_FORMER.", "DATALOADER.")):
            for text in TEXTS[::2]:
                yield Case(
                    f"eval {key}",
                    shown(text),
                    [("eval", "--ckpt", RUN, key, text)],
                    [key, key.rsplit(".", 1)[-1]],
                    kept=[f"{RUN}/{name}" for name in RUN_FILES],
                )


def _nested_yaml(key: str, text: str) -> Callable[[], None]:
    def write() -> None:
        lines = [f"_BASE_: {CONFIG}", "SOLVER: {MAX_ITER: 1}"]
        for depth, part in enumerate(key.split(".")):
            lines.append("  " * depth + f"{part}:")
        lines[-1] += f" {text}"
        if key.startswith("SOLVER."):
            lines.pop(1)
        Path("bad.yaml").write_text("\n".join(lines) + "\n")

    return write


def command_line(seeds: range) -> Iterator[Case]:
    """Every option of every command with a path that is none, and with text where a number belongs."""
    from workbench import cli

    bases: dict[str, tuple[str, ...]] = {
        "shapes": ("--output", "made", "--train", "1", "--val", "1", "--test", "1", "--image-size", "32"),
        "validate": (VAL,),
        "import": ("exports/labelme", "imported"),
        "split": (VAL, "--out", "parts"),
        "init": (TRAIN, "--out", "made.yaml", "--minutes", "1"),
        "train": ("--config", CONFIG, "--output", "new"),
        "trace": ("--config", CONFIG),
        "eval": ("--ckpt", RUN),
        "predict": ("--ckpt", RUN, "--output", "out", PHOTO),
        "show": (RUN,),
        "report": (RUN,),
        "runs": (RUN,),
        "sweep": (SWEEP,),
        "env": (),
        "build-ops": (),
        "convert": (RUN, "converted"),
        "export": ("--ckpt", RUN, "--output", "exported", "--format", "torch-export"),
    }
    values = (
        "",
        " ",
        "-1",
        "0",
        "1e9",
        "nan",
        "x",
        "9" * 400,
        ".",
        "gone/gone",
        PHOTO,
        "new\nline",
        "a" * 5000,
        "/dev/null",
    )
    assert set(cli.COMMANDS) <= set(bases), "a new command needs its base here"
    for name, command in cli.COMMANDS.items():
        yield Case(name, "no arguments", [(name,)], [""], kept=["shapes", RUN])
        yield Case(name, "an unknown option", [(name, *bases[name], "--outptu", "x")], ["--outptu"], "refused")
        for option, settings in command.options:
            if settings.get("action") and settings["action"] != "append":
                continue
            for value in values:
                words = [value] if not option[0].startswith("-") else [option[0], value]
                base = bases[name]
                if not option[0].startswith("-"):
                    base = tuple(
                        word
                        for word in base
                        if word not in (VAL, TRAIN, RUN, SWEEP, PHOTO, "exports/labelme", "imported")
                    )
                if name in ("sweep", "build-ops", "env") and option[0] not in ("sweep",):
                    continue
                yield Case(
                    name,
                    f"{option[0]} {shown(value)}",
                    [(name, *base, *words)],
                    [""],
                    kept=["shapes", RUN, CONFIG, "photos"] if name != "train" else ["shapes", CONFIG, "photos"],
                )


def dataset(seeds: range) -> Iterator[Case]:
    """Each field of a dataset with each hostile value: what validation passes, training and evaluation take."""
    content = json.loads(Path(VAL).read_text())
    ways = list(places(content, most=1))
    for way in ways:
        for value in (*THINGS, GONE):
            label = "left out" if value is GONE else shown(value)
            change = put_json(VAL, way, value)
            yield Case(
                f"val.json {_path(way)}",
                label,
                [("validate", VAL)],
                ["val.json"],
                break_it=change,
                wrong=oracles.validated(VAL),
            )
    for number, (way, value) in enumerate((way, value) for way in ways for value in THINGS):
        change = put_json(VAL, way, value)
        score, split = SCORE, ("split", VAL, "--out", "parts", "--no-images")
        argv = ([score], [split])[number % 2]
        yield Case(
            f"{argv[0][0]} val.json {_path(way)}",
            shown(value),
            argv,
            ["val.json", RESULTS],
            break_it=change,
            wrong=oracles.scored if argv[0] is score else oracles.nothing,
        )
    for name, damage in damages(seeds):
        yield Case(
            "val.json",
            name,
            [("validate", VAL)],
            ["val.json"],
            break_it=put_bytes(VAL, damage),
            wrong=oracles.validated(VAL),
        )
        yield Case(
            "eval val.json", name, [SCORE], ["val.json", RESULTS], break_it=put_bytes(VAL, damage), wrong=oracles.scored
        )


_RANKING = (
    ("score",),
    ("main_score",),
    ("mask_score",),
    ("attribute_scores",),
    ("query",),
)  # rows are ranked anew by them


def results(seeds: range) -> Iterator[Case]:
    """Each field of a results file, compared with pycocotools where it takes the file; and RLEs at random."""
    content = json.loads(Path(RESULTS).read_text())
    for way in places(content, most=1):
        for value in (*THINGS, GONE):
            label = "left out" if value is GONE else shown(value)
            yield Case(
                f"results {_path(way)}",
                label,
                [SCORE],
                [RESULTS],
                break_it=put_json(RESULTS, way, value),
                wrong=oracles.nothing if way[1:2] in _RANKING else oracles.scored,
            )
    for name, damage in damages(seeds):
        yield Case("results", name, [SCORE], [RESULTS], break_it=put_bytes(RESULTS, damage), wrong=oracles.scored)
    for seed in seeds:
        for number in range(8):
            counts = oracles.random_counts(seed * 100 + number)
            change = put_json(RESULTS, (0, "segmentation", "counts"), counts)
            yield Case(f"RLE, seed {seed}", shown(counts), [SCORE], [RESULTS], break_it=change, wrong=oracles.scored)


def images(seeds: range) -> Iterator[Case]:
    """Image files of each format, damaged; compared with Pillow's strict reading."""
    for picture in oracles.PICTURES:
        path = "photos/b.dat"
        for name, damage in (("whole", bytes), *damages(seeds)):
            change = partial(oracles.write_picture, path, picture, damage)
            yield Case(
                f"image {picture}",
                name,
                [("predict", "--ckpt", BEST, "--output", "out", path)],
                ["b.dat"],
                break_it=change,
                wrong=oracles.same_picture(path),
                kept=["photos", RUN],
            )
    annotated = "shapes/val/" + json.loads(Path(VAL).read_text())["images"][0]["file_name"]
    for name, damage in damages(seeds):
        yield Case(
            "image of a dataset",
            name,
            [("validate", VAL)],
            ["val.json"],
            break_it=put_bytes(annotated, damage),
            wrong=oracles.same_picture(annotated, "validate"),
        )


def checkpoints(seeds: range) -> Iterator[Case]:
    """Each file of a checkpoint, damaged, for those who use it and for those who continue from it."""
    continued = ("train", "--config", CONFIG, "--output", RUN, "SOLVER.MAX_ITER", "4")
    for place, argv, files in (
        (BEST, PREDICT, ("model.safetensors", "model.json")),
        (LAST, continued, ("model.safetensors", "model.json", "training_state.pt")),
    ):
        for file in files:
            path = f"{place}/{file}"
            ways = [(name, put_bytes(path, damage)) for name, damage in damages(seeds)]
            ways += [("a folder", to_folder(path)), ("a loop", to_loop(path)), ("nothing", to_nothing(path))]
            if file == "model.json":
                for way in places(json.loads(Path(path).read_text()), most=1):
                    if way[:1] == ("config",) and len(way) > 2:
                        continue
                    ways += [(f"{_path(way)} {shown(v)}", put_json(path, way, v)) for v in (*THINGS[::3], GONE)]
            elif file == "model.safetensors":
                ways += [(name, partial(oracles.rewrite_weights, path, name)) for name in oracles.WEIGHT_CHANGES]
            else:
                ways += [(name, partial(oracles.rewrite_state, path, name)) for name in oracles.STATE_CHANGES]
            for name, change in ways:
                yield Case(
                    f"{argv[0]} {path}",
                    name,
                    [argv],
                    [file, place, RUN, *(("train.json", "config key") if file == "model.json" else ())],
                    break_it=change,
                    kept=[BEST, "shapes"] if argv is PREDICT else [LAST, "shapes"],
                )


def json_files(seeds: range) -> Iterator[Case]:
    """The other JSON files that are read: filters, scores, notebooks, and what a run keeps."""
    continued = ("train", "--config", CONFIG, "--output", RUN, "SOLVER.MAX_ITER", "4")
    for path, argv in (
        (FILTERS, (*PREDICT, "--filters", FILTERS)),
        (f"{RUN}/metrics.json", ("show", RUN)),
        (f"{RUN}/metrics.json", ("runs", RUN)),
        (f"{RUN}/metrics.json", ("runs", "other", RUN)),
        (f"{RUN}/predictions.json", ("runs", "other", RUN)),
        (f"{RUN}/data.json", continued),
        (f"{RUN}/04_eval.ipynb", ("report", RUN)),
        ("sweep/base_lr=0.001/sweep.json", ("runs", "sweep")),
    ):
        if not Path(path).exists():
            continue
        document = json.loads(Path(path).read_text())
        copy = partial(_copy_run, "other") if "other" in argv else (lambda: None)
        ways = [
            (f"{_path(way)} {shown(v)}", put_json(path, way, v)) for way in places(document, 1) for v in (*THINGS, GONE)
        ]
        step = max(1, len(ways) // 400)
        ways = ways[::step] + [(name, put_bytes(path, damage)) for name, damage in damages(seeds)]
        ways += [("a folder", to_folder(path)), ("a loop", to_loop(path)), ("nothing", to_nothing(path))]
        for name, change in ways:
            yield Case(
                f"{argv[0]} {path}",
                name,
                [argv],
                [Path(path).name, Path(path).name.capitalize(), RUN, "sweep"],
                break_it=partial(_both, copy, change),
                kept=["shapes", f"{RUN}/checkpoints/best"],
            )


def _both(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()


def _copy_run(target: str) -> None:
    import shutil

    shutil.copytree(RUN, target)


YAMLS = [
    r"",
    r"~",
    r"3",
    r"[]",
    r"x",
    r"- 1",
    r"{",
    r"a: [",
    r"a: &a [*a]",
    r"? [1]\n: 2",
    r"!!python/name:os.system",
    r"a: 1\na: 2",
    r"2020-01-01: 1",
    r"'': 1",
    r"1: 2",
    r"{[1]: 2}",
    r"%YAML 9.9\n---\na",
    r"--- 1\n--- 2",
    r"\t",
    r"a: \x07",
    r"<<: {a: 1}",
]
FIELD_VALUES = [
    r"",
    r"~",
    r"3",
    r"-1",
    r"1e400",
    r".nan",
    r"x",
    r"[]",
    r"[~]",
    r"[1, x]",
    r"{}",
    r"{a: {b: 1}}",
    r"[[1]]",
    r"true",
    r'"\0"',
    r'"\uD800"',
    r"2020-01-01",
    r"../../x",
    r"[gone.yaml]",
    r"/",
]
FIELD_VALUES += ["9" * 200, "[" * 80 + "]" * 80, "x" * 5000]


def yaml_files(seeds: range) -> Iterator[Case]:
    """Sweeps, the catalog and configs in YAML."""
    commands = {
        SWEEP: ("sweep", SWEEP),
        CATALOG: ("validate", "mine", "--root", "."),
        CONFIG: ("train", "--config", CONFIG, "--output", "new", "SOLVER.MAX_ITER", "1"),
    }
    fields = {
        SWEEP: (
            "notebook",
            "output",
            "parameters",
            "overrides",
            "grid",
            "grid.SOLVER.BASE_LR",
            "parameters.config",
            "x",
        ),
        CATALOG: ("mine", "mine.annotations", "mine.images", "x", "x.annotations"),
        CONFIG: ("MODEL", "SOLVER", "_BASE_", "X", "MODEL.BACKBONE", "INPUT"),
    }
    for path, argv in commands.items():
        name = Path(path).name
        for text in YAMLS:
            yield Case(
                path,
                shown(text),
                [argv],
                [name],
                break_it=partial(_both, partial(_write, path, unescaped(text)), _stub_trials),
                kept=["shapes", RUN],
            )
        for field in fields[path]:
            for value in FIELD_VALUES:
                change = partial(_both, partial(_replace_field, path, field, value), _stub_trials)
                yield Case(
                    f"{path} {field}",
                    shown(value),
                    [argv],
                    [name, "trial.ipynb", field.split(".")[-1], "annotation"],
                    break_it=change,
                    kept=["shapes", RUN],
                )
        for label, damage in damages(seeds):
            names = [name, "val.json", "train.json", "mine"]
            change = partial(_both, put_bytes(path, damage), _stub_trials)
            yield Case(path, label, [argv], names, break_it=change, kept=["shapes", RUN])


def _stub_trials() -> None:
    """Let every trial of a sweep succeed at once: papermill takes seconds to start, and the file was read before."""
    from workbench.workflows import sweep

    sweep._run = lambda notebook, trial, *rest: trial.directory.mkdir(parents=True, exist_ok=True) or True


def _write(path: str, text: str) -> None:
    Path(path).write_text(text)


def _replace_field(path: str, field: str, value: str) -> None:
    """Give a key of a YAML file, one level below the top at most, a value written as YAML."""
    import yaml

    content = yaml.safe_load(Path(path).read_text())
    top, _, rest = field.partition(".")
    lines = []
    for key in dict.fromkeys([*content, top]):
        if key != top:
            lines.append(f"{key}: {json.dumps(content[key])}")
        elif not rest:
            lines.append(f"{key}: {value}")
        else:
            lines.append(f"{key}:")
            below = content.get(key) if isinstance(content.get(key), dict) else {}
            lines += [f"  {name}: {json.dumps(item)}" for name, item in below.items() if name != rest]
            lines.append(f"  {rest}: {value}")
    Path(path).write_text("\n".join(lines) + "\n")


def imports(seeds: range) -> Iterator[Case]:
    """Exports of seven annotation tools, damaged; what is imported, validates."""
    for export in EXPORTS:
        folder = Path("exports") / export
        argv = [("import", str(folder), "imported", "--format", export, "--category", "class")][:1]
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            ways: list[tuple[str, Any]] = [(name, put_bytes(str(path), damage)) for name, damage in damages(seeds)]
            ways += [
                ("a folder", to_folder(str(path))),
                ("a loop", to_loop(str(path))),
                ("nothing", to_nothing(str(path))),
            ]
            if path.suffix == ".json":
                document = json.loads(path.read_text())
                ways += [
                    (f"{_path(way)} {shown(v)}", put_json(str(path), way, v))
                    for way in places(document, 1)
                    for v in THINGS[::2]
                ]
            elif path.suffix in (".xml", ".txt", ".yaml"):
                for text in ("-1", "nan", "1e400", "x", "", "&amp;", "9" * 400):
                    for index in range(len(oracles.NUMBERS.findall(path.read_text()))):
                        ways.append(
                            (f"number {index} {shown(text)}", partial(oracles.put_number, str(path), index, text))
                        )
            for name, change in ways:
                yield Case(
                    f"import {path.relative_to('exports')}",
                    name,
                    argv,
                    [path.name, export],
                    break_it=change,
                    wrong=oracles.imported,
                    kept=["exports"],
                )


def environment(seeds: range) -> Iterator[Case]:
    """Variables that a launcher, a cluster or a user left behind."""
    train = ("train", "--config", CONFIG, "--output", "new", *STEP)
    score = ("eval", "--ckpt", RUN)
    values = ("", "0", "1", "2", "-1", "x", "1.5", "9" * 30)
    names = [
        "WORLD_SIZE",
        "RANK",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "SLURM_PROCID",
        "ACCELERATE_MIXED_PRECISION",
        "ACCELERATE_USE_DEEPSPEED",
        "ACCELERATE_USE_FSDP",
        "ACCELERATE_USE_MEGATRON_LM",
        "ACCELERATE_USE_CPU",
        "ACCELERATE_TORCH_DEVICE",
        "ACCELERATE_DYNAMO_BACKEND",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        "CUDA_VISIBLE_DEVICES",
        "CUDA_HOME",
        "WORKBENCH_OPS",
        "OMP_NUM_THREADS",
        "PYTHONWARNINGS",
        "TMPDIR",
        "HOME",
        "CC",
        "CXX",
        "MPLBACKEND",
        "COLUMNS",
        "LC_ALL",
    ]
    for name in names:
        for number, value in enumerate(values):
            argv = train if number % 2 else score
            yield Case(
                f"{argv[0]} {name}",
                value,
                [argv],
                [name, "WORLD_SIZE", "accelerate"],
                environment={name: value},
                kept=["shapes", f"{RUN}/checkpoints"],
            )
    for text in (
        "WORLD_SIZE=2 RANK=0",
        "WORLD_SIZE=2 RANK=5 LOCAL_RANK=5 MASTER_ADDR=127.0.0.1 MASTER_PORT=x",
        "LOCAL_RANK=3 RANK=3",
        "WORLD_SIZE=1 RANK=1 LOCAL_RANK=1 MASTER_ADDR=127.0.0.1 MASTER_PORT=29555",
    ):
        broken = dict(item.split("=") for item in text.split())
        yield Case("train launcher", text, [train], ["WORLD_SIZE", "accelerate", "RANK", "MASTER"], environment=broken)


def unescaped(text: str) -> str:
    """Return a text of a table with its line ends and control characters."""
    return text.replace("\\n", "\n").replace("\\t", "\t").replace("\\x07", "\x07")


def _path(way: tuple[Any, ...]) -> str:
    return ".".join(map(str, way)) or "(all)"


GROUPS: dict[str, Callable[[range], Iterator[Case]]] = {
    "config": config_values,
    "command line": command_line,
    "dataset": dataset,
    "results": results,
    "images": images,
    "checkpoints": checkpoints,
    "json": json_files,
    "yaml": yaml_files,
    "import": imports,
    "environment": environment,
}
