"""Have PostgreSQL's programs for the tests of an MLflow server: those that are there, else Debian's package.

    python scripts/postgres.py

Prints their folder. NVG_POSTGRES names another one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

PROGRAMS = ("initdb", "postgres", "createdb")


def find() -> Path | None:
    """The folder with initdb, postgres and createdb."""
    named, on_path = os.environ.get("NVG_POSTGRES"), shutil.which("initdb")
    folders = [Path(named)] if named else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    folders += [Path(on_path).parent] if on_path else []
    return next((folder for folder in folders if all((folder / name).is_file() for name in PROGRAMS)), None)


def main(argv: list[str] | None = None) -> None:
    """Find or install, print the folder. argv: the command line without the program."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args(argv)
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
