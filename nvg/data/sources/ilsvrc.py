"""ILSVRC (ImageNet) as its archives unpack: synset folders, or a flat validation folder with its ground truth.

train: <root>/n01440764/*.JPEG, or <root>/n01440764.tar as the training archive holds them.
val:   the same, or flat ILSVRC2012_val_*.JPEG with LOC_val_solution.csv or ILSVRC2012_validation_ground_truth.txt (and
       then LOC_synset_mapping.txt in the order of its numbers) in the folder, its parent, or a `devkit/data` there.
Class = rank of the synset id, the usual order. Names come from LOC_synset_mapping.txt, else they are the synset ids.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from nvg import storage
from nvg.config import DataConfig
from nvg.data.records import BrokenImage, DataError, ImageRecord, ImageSource, Unit, chunks, shuffled
from nvg.data.sources.folder import IMAGE_SUFFIXES, common_root
from nvg.data.sources.tar import count_members, read_members

SYNSET = re.compile(r"n\d{8}")


class IlsvrcSource(ImageSource):
    """An image's id is its path below the root, without the suffix."""

    def __init__(self, config: DataConfig, root: str) -> None:
        self.root = root.rstrip("/")
        files = storage.list_files(self.root, (*IMAGE_SUFFIXES, ".tar"))
        self.prefix = common_root(self.root, files)
        self.names = self._synset_names()
        synsets, labelled, archives = self._labels(files)
        self.class_names = [self.names.get(synset, synset) for synset in synsets]
        index = {synset: label for label, synset in enumerate(synsets)}
        self.files = files
        self.units: list[Unit] = [
            {"files": [(file, index[synset]) for file, synset in chunk]}
            for chunk in chunks(shuffled(labelled), config.unit_images)
        ]
        self.units += [{"archive": file, "label": index[synset]} for file, synset in archives]

    def _labels(self, files: list[str]) -> tuple[list[str], list[tuple[str, str]], list[tuple[str, str]]]:
        """Sorted synsets, (image, synset) pairs and (class archive, synset) pairs."""
        labelled, archives, flat = [], [], []
        for file in files:
            parts = file.removeprefix(self.prefix).split("/")
            stem = parts[-1].rsplit(".", 1)[0]
            if file.endswith(".tar"):
                if not SYNSET.fullmatch(stem):
                    raise DataError(f"{file}: a class archive is named by its synset (n01440764.tar)")
                archives.append((file, stem))
            elif len(parts) > 1 and SYNSET.fullmatch(parts[0]):
                labelled.append((file, parts[0]))
            elif len(parts) == 1:
                flat.append(file)
            else:
                raise DataError(f"{file} lies in a folder that is no synset (n01440764)")
        if flat:
            truth = self._ground_truth()
            for number, file in enumerate(flat, start=1):
                stem = file.rsplit("/", 1)[-1].rsplit(".", 1)[0]
                digits = re.search(r"(\d+)$", stem)
                key = stem if stem in truth else str(int(digits[1]) if digits else number)
                if key not in truth:
                    raise DataError(f"{file} is not in the validation ground truth")
                labelled.append((file, truth[key]))
        found = {synset for _, synset in labelled + archives}
        # With the mapping at hand, a split that lacks a class keeps the numbers of the others.
        synsets = sorted(self.names) if found <= set(self.names) and self.names else sorted(found)
        return synsets, labelled, archives

    def _find(self, name: str) -> str | None:
        parent = self.root.rsplit("/", 1)[0]
        for folder in (self.root, parent, f"{parent}/devkit/data", f"{self.root}/devkit/data"):
            if storage.exists(f"{folder}/{name}"):
                return f"{folder}/{name}"
        return None

    def _synset_names(self) -> dict[str, str]:
        file = self._find("LOC_synset_mapping.txt")
        if file is None:
            return {}
        lines = storage.read_bytes(file).decode().splitlines()
        return {line[:9]: line[10:].strip() for line in lines if SYNSET.match(line)}

    def _ground_truth(self) -> dict[str, str]:
        """File stem, or number as text, -> synset."""
        solution = self._find("LOC_val_solution.csv")
        if solution is not None:
            rows = csv.reader(io.StringIO(storage.read_bytes(solution).decode()))
            return {row[0]: row[1][:9] for row in rows if len(row) == 2 and SYNSET.match(row[1])}
        numbers = self._find("ILSVRC2012_validation_ground_truth.txt")
        if numbers is not None and self.names:
            order = list(self.names)  # the devkit numbers classes from 1 in the order of its own list
            lines = storage.read_bytes(numbers).decode().split()
            return {str(index): order[int(line) - 1] for index, line in enumerate(lines, start=1)}
        raise DataError(
            f"{self.root} holds validation images without class folders: put LOC_val_solution.csv, or "
            "ILSVRC2012_validation_ground_truth.txt and LOC_synset_mapping.txt, beside them"
        )

    def read(self, unit: Unit) -> Iterator[ImageRecord | BrokenImage]:
        if "archive" in unit:
            synset = unit["archive"].rsplit("/", 1)[-1].removesuffix(".tar")
            for name, data in read_members(unit["archive"]):
                if isinstance(data, BrokenImage):
                    yield data
                else:
                    yield ImageRecord(
                        f"{synset}/{name.rsplit('.', 1)[0]}", data, unit["label"], f"{unit['archive']}#{name}"
                    )
            return
        for file, label in unit["files"]:
            image_id = file.removeprefix(self.prefix).rsplit(".", 1)[0]
            try:
                yield ImageRecord(image_id, storage.read_bytes(file), label, file)
            except OSError as error:
                yield BrokenImage(image_id, file, f"{type(error).__name__}: {error}")

    def count(self) -> int:
        return sum(count_members(unit["archive"]) if "archive" in unit else len(unit["files"]) for unit in self.units)

    def fingerprint(self) -> str:
        return storage.fingerprint(self.files, self.prefix)
