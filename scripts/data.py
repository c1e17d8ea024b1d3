"""Have Fashion-MNIST: Debian's package where apt is there and allowed, else the four official files.

    python scripts/data.py

Prints, on standard output, the settings that a job needs to find it: nothing when it lies where conf/fashion_mnist.yaml
looks, else `data.train=... data.test=...`. Everything else goes to standard error. Standard library alone.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

PACKAGE = "dataset-fashion-mnist"
PACKAGED = Path("/usr/share/datasets/fashion-mnist")  # where the package, and conf/fashion_mnist.yaml, has it
DOWNLOADED = Path(__file__).resolve().parent.parent / "data" / "fashion-mnist"
IMAGES = {"train": "train-images-idx3-ubyte.gz", "test": "t10k-images-idx3-ubyte.gz"}
# File: the MD5 that its publisher, Zalando Research, gives. (The package holds the same bytes, gzipped anew.)
FILES = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
# The same bucket by its two doors; the second has no https, so that only the checksums vouch for it.
ADDRESSES = (
    "https://fashion-mnist.s3.eu-central-1.amazonaws.com",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)


def main(argv: list[str] | None = None) -> None:
    """Have the files; print the settings that find them. argv: the command line without the program."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args(argv)
    if complete(PACKAGED):
        return
    if not complete(DOWNLOADED) and install_package() and complete(PACKAGED):
        return
    if not complete(DOWNLOADED):
        address = os.environ.get("FASHION_MNIST_URL")
        download((address,) if address else ADDRESSES, DOWNLOADED)
    print(" ".join(f"data.{split}={DOWNLOADED / name}" for split, name in IMAGES.items()))


def complete(folder: Path) -> bool:
    """Whether the four files are there. Files get their name only when their checksum was right."""
    return all((folder / name).is_file() for name in FILES)


def install_package() -> bool:
    """Install Debian's package if that can be done without asking; returns whether it worked."""
    if shutil.which("apt-get") is None:
        return False
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if root and (shutil.which("sudo") is None or subprocess.run([*root, "true"], capture_output=True).returncode):
        return False
    say(f"Fashion-MNIST: apt-get install {PACKAGE}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "-qq", "update"], ["apt-get", "-qq", "install", "-y", PACKAGE]):
        done = subprocess.run([*root, *command], stdout=sys.stderr, stdin=subprocess.DEVNULL, env=environment)
        if done.returncode and "install" in command:
            say(f"Fashion-MNIST: apt-get could not install {PACKAGE}, downloading the official files")
            return False
    return True


def download(addresses: tuple[str, ...], folder: Path) -> None:
    """Fetch the files into a folder, from the first address that works. Ends the program where none does."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, checksum in FILES.items():
        if (folder / name).is_file():
            continue
        problems = []
        for address in addresses:
            url = f"{address.rstrip('/')}/{name}"
            try:
                say(f"Fashion-MNIST: {url}")
                with urllib.request.urlopen(url, timeout=60) as response:
                    content = response.read()
            except (urllib.error.URLError, OSError) as error:
                problems.append(f"{url}: {error}")
                continue
            actual = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if actual != checksum:
                problems.append(f"{url}: checksum (MD5) {actual}, expected {checksum}: not the official file")
                continue
            partial = folder / f".{name}.partial"
            partial.write_bytes(content)
            partial.replace(folder / name)
            break
        else:
            sys.exit(
                "error: Fashion-MNIST could not be had:\n  " + "\n  ".join(problems) + f"\nInstall Debian's {PACKAGE}, "
                f"put the four files into {folder}, or name another address: FASHION_MNIST_URL=https://..."
            )


def say(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
