"""Write the pages of docs/ that follow from the code: configuration, commands, HTTP tables, the architecture's picture.

    python -m scripts.docs

`make docs` calls it and builds the site; tests/test_docs.py holds that what is committed is what it writes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nvg.config import reference
from scripts.docs import architecture, commands, http

ROOT = Path(__file__).parents[2]
HTTP = ROOT / "docs" / "reference" / "http_api.md"


def made() -> dict[Path, str]:
    """The content of every file of docs/ that is made, whole or between markers, by its path."""
    docs = ROOT / "docs"
    configuration = {docs / "reference" / "configuration" / name: text for name, text in reference.pages().items()}
    return {
        **configuration,
        docs / "reference" / "cli.md": commands.page(),
        docs / "figures" / "architecture.svg": architecture.picture(),
        HTTP: http.page(HTTP.read_text()),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Write what differs and name it. argv: the command line without the program."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args(argv)
    for path, text in made().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
