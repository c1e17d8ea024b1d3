"""Have a Chromium for the tests of the studio page: one on the PATH, else Playwright's own, else Debian's package.

    python scripts/browser.py

Prints its path. NVG_CHROMIUM names another one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """The path of an installed browser."""
    named = os.environ.get("NVG_CHROMIUM")
    if named:
        return named
    for name in NAMES:
        if path := shutil.which(name):
            return path
    with sync_playwright() as playwright:
        bundled = playwright.chromium.executable_path
    return bundled if Path(bundled).is_file() else None


def install() -> None:
    """Try each way, without asking for anything."""
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    apt = [*root, "apt-get", "-qq"]
    ways = [[[sys.executable, "-m", "playwright", "install", "chromium"]]]
    if shutil.which("apt-get"):
        ways.insert(0, [[*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", "chromium"]])
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for commands in ways:
        for command in commands:
            print(f"browser: {' '.join(command)}", file=sys.stderr)
            try:
                subprocess.run(command, stdout=sys.stderr, stdin=subprocess.DEVNULL, env=environment, timeout=400)
            except (OSError, subprocess.TimeoutExpired) as error:
                print(f"browser: {error}", file=sys.stderr)
        if find():
            return


def main(argv: list[str] | None = None) -> None:
    """Find or install, print the path. argv: the command line without the program."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args(argv)
    if find() is None:
        install()
    path = find()
    if path is None:
        sys.exit("error: no Chromium: install one (apt-get install chromium) or name it with NVG_CHROMIUM=/path/to/it")
    print(path)


if __name__ == "__main__":
    main()
