"""The README in a fresh clone: every command and its Python, as pasted and in order.

    python -m tests.campaigns.readme

Clones the last commit into a temporary folder. A server is started as pasted, asked for its page, and stopped.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.smoke import ROOT
from tests.support.waiting import until

BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SERVER, PAGE = "make serve", "http://127.0.0.1:8000"


def blocks() -> list[tuple[str, str]]:
    """(language, text) of what README shows to be pasted."""
    return BLOCK.findall((ROOT / "README.md").read_text())


def shell(text: str, clone: Path) -> list[str]:
    """The command that runs a block in a shell where the ones before it were pasted."""
    active = clone / ".venv" / "bin" / "activate"
    before = f". {active}\n" if active.exists() else ""
    return ["bash", "-e", "-c", before + text]


def serve(command: list[str], clone: Path) -> None:
    """Start a server, look at its page, and end it as Ctrl+C does."""
    process = psutil.Popen(command, cwd=clone)

    def up() -> bool:
        assert process.poll() is None, "the server ended"
        try:
            return httpx.get(f"{PAGE}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(up, PAGE)
        assert "<title>" in httpx.get(f"{PAGE}/").text
    finally:
        family = [*process.children(recursive=True), process]
        for one in family:
            if "pipelines/serve.py" in " ".join(one.cmdline()):
                one.send_signal(signal.SIGINT)
        psutil.wait_procs(family, timeout=90)


@pytest.mark.timeout(3600)
def test_every_command_runs_as_pasted_in_a_fresh_clone(tmp_path: Path) -> None:
    clone = tmp_path / "nvg"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    found = blocks()
    assert {language for language, _ in found} == {"bash", "python"} and any(SERVER in text for _, text in found)
    for language, text in found:
        start = time.monotonic()
        if SERVER in text:
            serve(shell(text, clone), clone)
        elif language == "bash":
            subprocess.run(shell(text, clone), cwd=clone, check=True)
        else:
            subprocess.run([clone / ".venv" / "bin" / "python", "-c", text], cwd=clone, check=True)
        print(f"== {time.monotonic() - start:.0f} s: {text.strip()}", flush=True)
    assert (clone / "grid.png").stat().st_size > 1000
    assert list((clone / "runs" / "fashion_mnist").glob("evaluation-*/samples.png"))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-s", "-o", "addopts="]))
