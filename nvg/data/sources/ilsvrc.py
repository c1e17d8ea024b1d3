"""ILSVRC (ImageNet) as its archives unpack: synset folders, or a flat validation folder with its ground truth.

train: <root>/n01440764/*.JPEG, or <root>/n01440764.tar as the training archive holds them. A class archive is a unit,
       so unpacked images are mixed better.
val:   the same, or flat ILSVRC2012_val_*.JPEG with LOC_val_solution.csv, or with ILSVRC2012_validation_ground_truth.txt
       (synset ids, or the devkit's class numbers and then its meta.mat).
The tables are in the folder, in one of the four above it (where Kaggle's archive has them), or in a `devkit/data` or
`ILSVRC2012_devkit_t12/data` of these.
Class = rank of the synset id, the usual order. Names come from LOC_synset_mapping.txt, else from imagenet_synsets.txt,
the shipped list of ILSVRC 2012; another synset is named by its id.
"""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

from nvg import storage
from nvg.config import DataConfig
from nvg.data.classes import TrainingClasses, check_known
from nvg.data.records import BrokenImage, ImageRecord, ImageSource, Unit, chunks, read_image, shuffled
from nvg.data.sources.folder import IMAGE_SUFFIXES, OTHER_SUFFIXES
from nvg.data.sources.tar import count_members, read_members
from nvg.errors import DataError
from nvg.imagenet import SYNSET, distinct_names, parse_synsets, shipped_synsets

DEVKIT_CLASSES = 1000
FOLDERS_ABOVE = 4  # <Kaggle's archive>/ILSVRC/Data/CLS-LOC/val
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


class IlsvrcSource(ImageSource):
    """An image's id is its path below the root, without the suffix where that is enough."""

    def __init__(self, config: DataConfig, root: str, training: TrainingClasses | None = None) -> None:
        self.root = root.rstrip("/")
        self.prefix = storage.absolute(root) + "/"
        self.files = storage.list_sizes(root, (*IMAGE_SUFFIXES, *OTHER_SUFFIXES, ".tar"))
        names = self._synset_names()
        labelled, archives = self._labels(list(self.files), names)
        present = sorted({synset for _, synset in labelled + archives})
        if len(names) == config.num_classes:  # a split that lacks a class keeps the numbers of the others
            unknown = [synset for synset in present if synset not in names]
            if unknown:
                raise DataError(f"{self.root} holds {unknown[0]}, which is none of the {len(names)} synsets: remove it")
            synsets = sorted(names)
            self.empty = sorted(set(names) - set(present))
        elif training is not None:
            synsets = training()
            check_known(present, synsets, self.root)
        else:
            synsets = present
        self.classes = synsets
        self.class_names = distinct_names(synsets, names)
        index = {synset: label for label, synset in enumerate(synsets)}
        stems = Counter(_stem(name) for name, _ in labelled)
        self.repeated = {name for name, _ in labelled if stems[_stem(name)] > 1}  # x.jpg beside x.png
        self.labels = [f"{name} {label}" for name, label in sorted(labelled)]
        self.units: list[Unit] = [
            {"files": [(name, index[synset]) for name, synset in chunk]}
            for chunk in chunks(shuffled(labelled), config.unit_images)
        ]
        self.units += [{"archive": name, "label": index[synset]} for name, synset in archives]

    def reader(self) -> ImageSource:
        """A copy of the source without its listing (see ImageSource.reader) and without its labels."""
        clone = super().reader()
        assert isinstance(clone, IlsvrcSource)
        clone.labels = []
        return clone

    def _labels(self, files: list[str], names: dict[str, str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """(image, synset) pairs and (class archive, synset) pairs; images and archives by their path below the root."""
        labelled: list[tuple[str, str]] = []
        archives: list[tuple[str, str]] = []
        flat: list[str] = []
        for file in files:
            name = file.removeprefix(self.prefix)
            folder, _, _ = name.partition("/")
            stem = _stem(name.rpartition("/")[2])
            if name.endswith(".tar"):
                if not SYNSET.fullmatch(stem):
                    raise DataError(
                        f"{file}: a class archive is named by its synset (n01440764.tar); ILSVRC2012_img_train.tar and "
                        "ILSVRC2012_img_val.tar must be unpacked once"
                    )
                archives.append((name, stem))
            elif folder != name and SYNSET.fullmatch(folder):
                labelled.append((name, folder))
            elif folder == name:
                flat.append(name)
            else:
                raise DataError(
                    f"{file} lies in a folder that is no synset (n01440764): data.source=ilsvrc takes the folder that "
                    "holds the synset folders"
                )
        twice = {synset for _, synset in labelled} & {synset for _, synset in archives}
        if twice:
            raise DataError(
                f"{self.root} holds {min(twice)} as a folder and as {min(twice)}.tar: remove one of the two, so "
                "that no image is read twice"
            )
        if flat:
            labelled += self._flat_labels(flat, names)
        return labelled, archives

    def _flat_labels(self, flat: list[str], names: dict[str, str]) -> Iterator[tuple[str, str]]:
        """(image, synset) pairs of images without class folders, by the ground truth. Raises DataError."""
        truth = self._ground_truth(names)
        for name in flat:
            key = _stem(name)
            digits = re.search(r"(\d+)$", key)
            if key not in truth and digits:  # the devkit's table goes by number
                key = str(int(digits[1]))
            if key not in truth:
                raise DataError(f"{self.prefix}{name} is not in the validation ground truth ({len(truth)} images)")
            yield name, truth[key]

    def _find(self, name: str) -> str | None:
        """The path of a table, None where it is in none of the places where it may be."""
        folder = self.prefix.rstrip("/")
        for _ in range(1 + FOLDERS_ABOVE):
            for below in ("", "devkit/data/", "ILSVRC2012_devkit_t12/data/"):
                if storage.exists(f"{folder}/{below}{name}"):
                    return f"{folder}/{below}{name}"
            folder = folder.rpartition("/")[0]
            if folder.endswith((":", "/")) or not folder:  # above a bucket, or above /
                return None
        return None

    def _synset_names(self) -> dict[str, str]:
        """synset -> name, in the order of LOC_synset_mapping.txt, else of the shipped list."""
        path = self._find("LOC_synset_mapping.txt")
        return shipped_synsets() if path is None else parse_synsets(_text(path))

    def _ground_truth(self, names: dict[str, str]) -> dict[str, str]:
        """A file's stem, or its number as text, -> synset. Raises DataError where no table has it."""
        solution = self._find("LOC_val_solution.csv")
        if solution is not None:
            rows = csv.reader(io.StringIO(_text(solution)))
            try:
                return {row[0]: row[1][:9] for row in rows if len(row) == 2 and SYNSET.match(row[1])}
            except csv.Error as error:
                raise DataError(f"{solution} is damaged ({error}): fetch it again") from None
        table = self._find(GROUND_TRUTH)
        if table is None:
            raise DataError(
                f"{self.root} holds images without class folders: put LOC_val_solution.csv, or {GROUND_TRUTH} and the "
                "devkit's meta.mat, beside them"
            )
        lines = _text(table).split()
        if all(SYNSET.fullmatch(line) for line in lines):
            return {str(number): line for number, line in enumerate(lines, start=1)}
        order = self._devkit_order(names, table)
        wrong = [line for line in lines if not line.isdigit() or int(line) not in order]
        if wrong:
            raise DataError(f"{table} holds {wrong[0]!r}, which is none of the {len(order)} classes (1, 2, ...)")
        return {str(number): order[int(line)] for number, line in enumerate(lines, start=1)}

    def _devkit_order(self, names: dict[str, str], table: str) -> dict[int, str]:
        """The devkit's class number -> synset. Its numbers are no ranks: number 1 is a fox, and rank 0 is a fish."""
        meta = self._find("meta.mat")
        if meta is not None:
            return _devkit_table(meta)
        ranks = list(names) == sorted(names) and len(names) == DEVKIT_CLASSES
        if ranks:
            raise DataError(
                f"{table} numbers the classes in the devkit's own order, which is not that of the synset ids: put the "
                "devkit's data/meta.mat, or LOC_val_solution.csv, beside it"
            )
        return dict(enumerate(names, start=1))

    def _read(self, unit: Unit) -> Iterator[ImageRecord | BrokenImage]:
        if "archive" in unit:
            path, synset = self.prefix + unit["archive"], unit["archive"].removesuffix(".tar")
            seen: Counter[str] = Counter()
            for name, data in read_members(path):
                if isinstance(data, BrokenImage):
                    yield data
                elif name.lower().endswith((*IMAGE_SUFFIXES, *OTHER_SUFFIXES)):
                    seen[_stem(name)] += 1
                    image_id = f"{synset}/{_stem(name) if seen[_stem(name)] == 1 else f'{name}#{seen[_stem(name)]}'}"
                    yield ImageRecord(image_id, data, unit["label"], f"{path}#{name}")
            return
        for name, label in unit["files"]:
            yield read_image(name if name in self.repeated else _stem(name), self.prefix + name, label)

    def _size(self, unit: Unit) -> int:
        if "archive" in unit:
            return count_members(self.prefix + unit["archive"], (*IMAGE_SUFFIXES, *OTHER_SUFFIXES))
        return len(unit["files"])

    def fingerprint(self) -> str:
        return storage.fingerprint(self.files, self.prefix, *self.labels)


def _stem(name: str) -> str:
    """A name without its suffix."""
    return name.rsplit(".", 1)[0]


# scipy reads this format in native code that damaged bytes can crash, so it does that in a process of its own. Its
# computing is limited, and not its waiting: on a busy machine a sound file may take minutes.
_READ_MAT_SECONDS = 30
_READ_MAT = """
import io, json, sys
from scipy.io import loadmat
rows = loadmat(io.BytesIO(sys.stdin.buffer.read()), squeeze_me=True)["synsets"]
print(json.dumps([(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in rows]))
"""


def _devkit_table(file: str) -> dict[int, str]:
    """meta.mat: the devkit's class number -> synset. Raises DataError where it is damaged."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_CPU, ({_READ_MAT_SECONDS}, {_READ_MAT_SECONDS + 1}))"
    program = [sys.executable, "-c", f"{limit}\n{_READ_MAT}"]
    done = subprocess.run(program, input=storage.read_bytes(file), capture_output=True)
    if done.returncode:
        if done.returncode < 0:
            reason = f"its reader was ended by {signal.Signals(-done.returncode).name}"
        else:
            reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise DataError(f"{file} is no devkit table ({reason}): fetch it again")
    return dict(json.loads(done.stdout))


def _text(file: str) -> str:
    """Read a table. Raises DataError where it is no text."""
    try:
        return storage.read_bytes(file).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text ({error}): fetch it again") from None
