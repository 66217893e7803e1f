"""Many faults, one table: ``python -m tests.faults [GROUP ...] [--short] [--seeds FIRST COUNT]``.

Exit code 1 where one of them is not clear.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
import tempfile
import zlib
from pathlib import Path

SHORT = 20  # cases of a group in the short run


def main() -> int:
    """Run the groups that are named, or all, and print the table."""
    from tests.faults import processes, tables
    from tests.faults.harness import Table, attempt, run_forked

    groups = {**tables.GROUPS, **processes.GROUPS}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(groups)} (all)")
    parser.add_argument("--short", action="store_true", help="a sample of each group")
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 3), metavar=("FIRST", "COUNT"), help="of damages")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds this")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each N-th case")
    args = parser.parse_args()
    if unknown := set(args.groups) - set(groups):
        parser.error(f"there is no group {', '.join(sorted(unknown))}")
    seeds = range(args.seeds[0], args.seeds[0] + args.seeds[1])
    print(f"seeds {seeds.start} to {seeds.stop - 1}")
    import_everything()
    table = Table()
    with tempfile.TemporaryDirectory(prefix="faults-workplace-") as folder:
        workplace = Path(folder) / "work"
        workplace.mkdir()
        if run_forked(make_workplace, workplace) != 0:
            print("the workplace cannot be made", file=sys.stderr)
            return 1
        os.chdir(workplace)  # tables look at its files
        for group in args.groups or groups:
            if group in processes.GROUPS:
                for name, outcome in processes.GROUPS[group](workplace, seeds, args.short):
                    table.add(name, group, outcome)
                continue
            cases = [case for case in tables.GROUPS[group](seeds) if args.only in str(case)]
            if args.short:
                cases.sort(key=lambda case: zlib.crc32(str(case).encode("utf-8", "replace")))
                cases = cases[:SHORT]
            for case in cases[:: args.every]:
                table.add(case, group, attempt(case, workplace))
        os.chdir("/")
    print(f"\n{table.text()}")
    return 1 if table.faults else 0


def make_workplace() -> int:
    """Fill the working directory and return 0."""
    from tests.conftest import TINY
    from tests.faults.workplace import make_workplace

    make_workplace(TINY)
    return 0


def import_everything() -> None:
    """Import every module, so that a forked case need not."""
    import torch

    import workbench

    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(workbench.__path__, "workbench."):
        if not module.name.startswith(("workbench.detectron2", "workbench.notebook", "workbench.__main__")):
            importlib.import_module(module.name)
    importlib.import_module("torch._dynamo")  # the optimisers import it, which takes seconds


if __name__ == "__main__":
    sys.exit(main())
