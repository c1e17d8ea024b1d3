"""Have PostgreSQL's programs for the tests of an MLflow server: those that are there, else Debian's package.

    python scripts/postgres.py

Prints their folder. NVG_POSTGRES names another one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("initdb", "postgres", "createdb")


def find() -> Path | None:
    """The folder with initdb, postgres and createdb."""
    named, there = os.environ.get("NVG_POSTGRES"), shutil.which("initdb")
    folders = [Path(named)] if named else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    folders += [Path(there).parent] if there else []
    return next((folder for folder in folders if all((folder / name).is_file() for name in PROGRAMS)), None)


def main() -> None:
    """Find or install, print the folder."""
    if find() is None and shutil.which("apt-get"):
        apt = [*([] if os.geteuid() == 0 else ["sudo", "-n"]), "apt-get", "-qq"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in ([*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", "postgresql"]):
            print(f"postgres: {' '.join(command)}", file=sys.stderr)
            subprocess.run(command, stdout=sys.stderr, stdin=subprocess.DEVNULL, env=environment, timeout=400)
    folder = find()
    if folder is None:
        sys.exit("error: no PostgreSQL: install it (apt-get install postgresql) or name its bin folder: NVG_POSTGRES")
    print(folder)


if __name__ == "__main__":
    main()
