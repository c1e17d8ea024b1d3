"""Run one of the long tests that do not belong to `make test`.

    python -m tests.campaigns                   list them
    python -m tests.campaigns NAME [argument ...]

docs/reports/campaigns.md has what each proves, its minutes and when it was last run.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path


def campaigns() -> dict[str, str]:
    """The campaigns by name: the first line of each file of this folder that can be run."""
    paths = sorted(Path(__file__).parent.glob("*.py"))
    names = [path.stem for path in paths if path.stem not in ("__init__", "__main__", "conftest")]
    return {
        name: (Path(__file__).parent / f"{name}.py").read_text().split("\n", 1)[0].strip('"')
        for name in names
        if not name.startswith("test_")
    }


def main() -> None:
    """The command line."""
    known = campaigns()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="?", choices=known, help="none: list the campaigns")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="argument", help="of the campaign")
    options = parser.parse_args()
    if options.name is None:
        print("\n".join(f"{name:<12}{line}" for name, line in known.items()))
        return
    module = f"tests.campaigns.{options.name}"
    sys.argv = [module, *options.arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
