"""Have a Chromium for the tests of the studio page: one on the PATH, else Playwright's own, else Debian's package.

    python scripts/browser.py

Prints its path. NVG_CHROMIUM names another one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """The path of a browser that is there."""
    named = os.environ.get("NVG_CHROMIUM")
    if named:
        return named
    for name in NAMES:
        if found := shutil.which(name):
            return found
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).is_file() else None


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


def main() -> None:
    """Find or install, print the path."""
    if find() is None:
        install()
    path = find()
    if path is None:
        sys.exit("error: no Chromium: install one (apt-get install chromium) or name it with NVG_CHROMIUM=/path/to/it")
    print(path)


if __name__ == "__main__":
    main()
