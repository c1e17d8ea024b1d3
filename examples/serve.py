"""Ask a running server (`make serve`) for a picture, with nothing but Python's own library.

python -m examples.serve --prompt Bag --output bag.png

Its guide is docs/guides/serve.md.
"""

from __future__ import annotations

import argparse
import base64
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> None:
    """Ask, and write the picture. argv: the command line without the program."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--address", default="http://127.0.0.1:8000", help="of the server")
    parser.add_argument("--prompt", default="Bag", help="a class's name (default Bag)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="bag.png", help="the picture to write (default bag.png)")
    arguments = parser.parse_args(argv)
    body = json.dumps({"prompt": arguments.prompt, "seed": arguments.seed}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{arguments.address}/v1/images/generations", body, headers)
    try:
        with urllib.request.urlopen(request) as answer:
            content = json.load(answer)
    except urllib.error.HTTPError as error:  # the server's own words: an unknown class, a full queue
        raise SystemExit(f"error: {json.load(error)['error']['message']}") from None
    except OSError as error:
        raise SystemExit(f"error: {arguments.address}: {error}: start a server with `make serve`") from None
    Path(arguments.output).write_bytes(base64.b64decode(content["data"][0]["b64_json"]))
    print(f"{arguments.output}: {arguments.prompt}, seed {arguments.seed}")


if __name__ == "__main__":
    main()
