"""Hooks of mkdocs.yml: links from docs/ to other files of the repository, and the links to edit a page.

A page names code by its path, `../../nvg/generator/sampler.py`, which a forge follows and a site of docs/ alone cannot.
Here such a link leads to the file on the forge. The forge is NVG_REPOSITORY or the remote `origin` of this clone; where
there is none, the link's text stays and no page can be edited.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Set the repository's address, by which every page gets its link to edit it."""
    config.repo_url = repository()
    if config.repo_url:
        config.repo_name = config.repo_url.split("://")[-1].partition("/")[2]
        config.edit_uri = "edit/main/docs/"
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Have links that leave docs/ lead to the forge."""
    return outside(markdown, DOCS / page.file.src_uri, config.repo_url)


def outside(text: str, page: Path, address: str | None) -> str:
    """`text` with links to files outside of docs/ made absolute, or replaced by their words without an address.

    Raises FileNotFoundError for a file that is not there.
    """

    def replaced(found: re.Match[str]) -> str:
        words, target, anchor = found[1], found[2], found[3] or ""
        path = (page.parent / target).resolve()
        if path.is_relative_to(DOCS):
            return found[0]
        if not path.exists():
            raise FileNotFoundError(f"{page.relative_to(ROOT)}: there is no {target}")
        kind = "tree" if path.is_dir() else "blob"
        return f"[{words}]({address}/{kind}/main/{path.relative_to(ROOT)}{anchor})" if address else words

    return LINK.sub(replaced, text)


def repository() -> str | None:
    """The address of the repository's pages on its forge, without a slash at the end; None where nothing names it."""
    named = os.environ.get("NVG_REPOSITORY")
    if named is None:
        command = ["git", "remote", "get-url", "origin"]
        asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        named = asked.stdout.strip() if asked.returncode == 0 else ""
    named = re.sub(r"^(?:ssh://)?git@([^:/]+)[:/]", r"https://\1/", named)
    return named.rstrip("/").removesuffix(".git") if named.startswith(("https://", "http://")) else None
