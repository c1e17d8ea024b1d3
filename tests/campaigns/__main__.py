"""Run one of the long tests that do not belong to `make test`.

    python -m tests.campaigns                   list them
    python -m tests.campaigns NAME [argument ...]

docs/reports/campaigns.md has what each proves, its minutes and when it was last run.
"""

from __future__ import annotations

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
    if len(sys.argv) < 2:
        print("\n".join(f"{name:<12}{line}" for name, line in known.items()))
        return
    if sys.argv[1] not in known:
        sys.exit(f"error: no campaign {sys.argv[1]!r}; there are {', '.join(known)}")
    del sys.argv[0]
    runpy.run_module(f"tests.campaigns.{sys.argv[0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
