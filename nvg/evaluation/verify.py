"""Is an artifact what it says it is? Checks of token sets, tokenizers, samplers and training checkpoints.

A check is (name, ok, detail). The checks of an artifact are functions that return the detail, or raise where it fails;
`run` calls them in order. Nothing is written, nothing is trained, and no Ray is needed: parts are read by threads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from nvg import storage
from nvg.autoencoder import Autoencoder
from nvg.config import Config
from nvg.data import BrokenImage, DataError, ImageSource
from nvg.data import tokens as token_parts
from nvg.data.images import to_float
from nvg.data.stream import read_pieces
from nvg.data.tokens import TokenFormat
from nvg.evaluation.reconstruction import code_counts, codebook_use, mean_squared_error, psnr
from nvg.granularity import GranularitySequence, positions_of_codes
from nvg.training import checkpoint

LEAST_PSNR = 10.0  # dB of a reconstruction: a picture of its mean colour alone has about that
LEAST_EQUAL = 0.95  # share of tokens that encoding again gives: another batch size flips near-ties, and what follows
MOST_BROKEN = 0.01  # share of images in quarantine
MOST_ONE_TOKEN = 0.9  # share of the most frequent token: above, the codebook has collapsed
NAMED = 3  # faults that a message lists

Step = tuple[str, Callable[[], str]]


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'FAIL':<4}  {self.name}: {self.detail}"


def run(needed: Sequence[Step], others: Sequence[Step] = ()) -> Iterator[Check]:
    """The checks in order. needed: what all that follows stands on; the first of them that fails is the last check."""
    for number, (name, step) in enumerate((*needed, *others)):
        try:
            yield Check(name, True, step())
        except (ValueError, OSError, RuntimeError) as error:
            yield Check(name, False, " ".join(str(error).split()))
            if number < len(needed):
                return


def require(ok: object, detail: str) -> str:
    """The detail where it is ok. Raises ValueError with it where it is not."""
    if not ok:
        raise ValueError(detail)
    return detail


def listed(faults: Sequence[object]) -> str:
    """The first faults, and how many more there are."""
    more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    return "; ".join(map(str, faults[:NAMED])) + more


def kind_of(folder: str) -> str:
    """tokens, tokenizer, sampler or training. Raises ValueError for a folder that is none of them."""
    if token_parts.parts(folder):
        return "tokens"
    if not storage.exists(storage.join(folder, storage.LAST_FILE)):
        if storage.exists(storage.join(folder, checkpoint.HALF)):
            return "sampler"
        raise ValueError(f"it has no {storage.LAST_FILE} and no token parts: no artifact, or one in the making")
    about = storage.read_json(storage.join(folder, storage.LAST_FILE))
    kind = about.get("kind", "tokens" if "codebook_size" in about else None) if isinstance(about, dict) else None
    if kind not in ("tokens", "tokenizer", "sampler", "training"):
        raise ValueError(f"it holds {kind!r}, none of tokens, tokenizer, sampler, training")
    return kind


# ---- tokens ----


@dataclass
class _Part:
    """What a part holds, in sums and hashes."""

    place: tuple[int, int]
    ids: np.ndarray  # (n,) hashes of the ids, the same in all parts
    labels: np.ndarray  # (n,)
    counts: Tensor  # (K + 1, V) int64, of each token at each stage
    broken: list[BrokenImage]
    faults: dict[str, int] = field(default_factory=dict)  # rows with a fault, by its name


class TokenChecks:
    """The checks of a token set. What else is known of it may be None: expected, the format that the configuration
    gives; tokenizer; images: the source with the configuration, and how many of its images to encode again."""

    def __init__(
        self,
        folder: str,
        *,
        expected: TokenFormat | None = None,
        tokenizer: Autoencoder | None = None,
        images: tuple[ImageSource, Config, int] | None = None,
    ) -> None:
        self.folder, self.expected, self.tokenizer, self.images = folder, expected, tokenizer, images
        self.parts: list[_Part] = []

    def run(self) -> Iterator[Check]:
        """All checks that can be made."""
        others: list[Step] = [
            ("parts", self.places), ("part contents", self.contents), ("counts", self.counts), ("ids", self.ids),
            ("labels", self.labels), ("classes", self.classes), ("values", self.values),
            ("structure", self.structure), ("codebook", self.codebook), ("quarantine", self.quarantine),
        ]  # fmt: skip
        others += [("configuration", self.configuration)] if self.expected else []
        others += [("images", self.source)] if self.images else []
        others += [("sample", self.sample)] if self.images and self.tokenizer else []
        return run([("metadata.json", self.metadata)], others)

    def metadata(self) -> str:
        """It is there and whole."""
        self.about = token_parts.read_metadata(self.folder)
        self.form = token_parts.metadata_format(self.about, self.folder)
        require(self.form.class_names, "class_names is empty")
        form = self.form
        return f"tokenizer {form.fingerprint}, K={form.last_stage}, V={form.codebook_size}"

    def places(self) -> str:
        """Every unit has every view, and no file is over."""
        self.there = token_parts.parts(self.folder)
        units = 1 + max((unit for unit, _ in self.there), default=-1)
        if self.images:
            units = len(self.images[0].units)
        wanted = {(unit, view) for unit in range(units) for view in range(self.about["views"])}
        missing, foreign = sorted(wanted - set(self.there)), sorted(set(self.there) - wanted)
        used = {path for paths in self.there.values() for path in paths}
        files = set(storage.list_files(self.folder, (".parquet",)))
        extra = sorted(path for path in files - used if not path.endswith("/quarantine.parquet"))
        faults = [f"(unit, view) {place} is missing" for place in missing]
        faults += [f"(unit, view) {place} does not belong" for place in foreign]
        faults += [f"{PurePosixPath(path).name} is of no whole unit, or of one that is there twice" for path in extra]
        require(not faults, listed(faults))
        return f"{len(used)} of {units} units in {self.about['views']} views"

    def contents(self) -> str:
        """Every part can be read and is of the format that metadata.json names."""
        todo = [(place, path) for place, paths in self.there.items() for path in paths]
        faults = []
        with ThreadPoolExecutor(16) as pool:
            for found in pool.map(lambda item: self._scan(*item), todo):
                faults.append(found) if isinstance(found, str) else self.parts.append(found)
        require(not faults, listed(faults))
        return f"schema and metadata of {len(todo)} parts equal, fingerprint {self.form.fingerprint}"

    def _scan(self, place: tuple[int, int], path: str) -> _Part | str:
        try:
            table = token_parts.read_part(path, self.form.fingerprint)
            form = token_parts.part_format(table.schema, path)
            if form != self.form:
                return f"{path} differs from metadata.json in {', '.join(differences(form, self.form))}"
            broken = token_parts.part_quarantine(table.schema, path)
        except (DataError, OSError) as error:
            return str(error)
        arrays = token_parts.to_arrays(table)
        codes, content = torch.from_numpy(arrays["codes"]), torch.from_numpy(arrays["content"])
        large = (content >= form.codebook_size).any(1) | (codes >= form.positions).any(1)
        halves = (codes.sort(dim=1).values == torch.arange(form.positions)).all(1)  # all distinct: equal halves, always
        whole = codes[halves]
        named = torch.ones(len(whole), dtype=torch.bool)
        if self.tokenizer is not None and self.tokenizer.config.child_order == "raster":
            order = positions_of_codes(whole)
            for stage in range(1, form.last_stage + 1):  # of two siblings bit 0 is the one that comes first
                first = order.unflatten(1, (2**stage, -1)).amin(dim=2)
                named &= (first[:, 0::2] < first[:, 1::2]).all(1)
        good = GranularitySequence.from_flat(codes[~large], content[~large])
        faults = {
            "view": int((table["view"].to_numpy() != place[1]).sum()),
            "range": int(large.sum()),
            "halves": int((~halves).sum()),
            "names": int((~named).sum()),
            "features": int((~np.isfinite(arrays["features"]).all(1)).sum()) if "features" in arrays else 0,
        }
        ids = np.fromiter(map(hash, table["image_id"].to_pylist()), np.int64, table.num_rows)
        return _Part(place, ids, arrays["labels"], code_counts(good, form.codebook_size), broken, faults)

    def _faults(self, *names: str) -> dict[str, int]:
        return {name: count for name in names if (count := sum(part.faults[name] for part in self.parts))}

    def _view(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and labels of a view, ordered by id."""
        ids = np.concatenate([np.zeros(0, np.int64)] + [part.ids for part in self.parts if part.place[1] == view])
        labels = np.concatenate([np.zeros(0, np.int64)] + [part.labels for part in self.parts if part.place[1] == view])
        order = ids.argsort(kind="stable")
        return ids[order], labels[order]

    def _broken(self) -> set[tuple[str, str, str]]:
        return {(item.image_id, item.path, item.reason) for part in self.parts for item in part.broken}

    def counts(self) -> str:
        """metadata.json counts what is there."""
        held = {
            "images": len(self._view(0)[0]),
            "rows": sum(len(part.ids) for part in self.parts),
            "parts": len(self.parts),
            "quarantined": len(self._broken()),
        }
        wrong = [f"{name} is {self.about[name]}, found {held[name]}" for name in held if held[name] != self.about[name]]
        require(not wrong, listed(wrong))
        return ", ".join(f"{count} {name}" for name, count in held.items())

    def ids(self) -> str:
        """Each id once a view, the same ids in all views."""
        first = self._view(0)[0]
        faults = []
        for view in range(self.about["views"]):
            ids = self._view(view)[0]
            twice = len(ids) - len(np.unique(ids))
            faults += [f"{twice} ids twice in view {view}"] if twice else []
            other = len(np.setxor1d(ids, first))
            faults += [f"{other} ids are in one of the views 0 and {view} alone"] if other else []
        wrong = self._faults("view")
        faults += [f"{wrong['view']} rows of another view than their part"] if wrong else []
        require(not faults, listed(faults))
        return f"{len(first)} in each view, each once"

    def labels(self) -> str:
        """In range, and the same in all views."""
        classes = len(self.form.class_names)
        labels = np.concatenate([np.zeros(0, np.int64)] + [part.labels for part in self.parts])
        outside = int(((labels < 0) | (labels >= classes)).sum())
        require(not outside, f"{outside} labels are none of 0 ... {classes - 1}")
        first = self._view(0)
        for view in range(1, self.about["views"]):
            ids, labels = self._view(view)
            other = np.array_equal(ids, first[0]) and not np.array_equal(labels, first[1])
            require(not other, f"images of view {view} have other labels than in view 0")
        return f"0 ... {classes - 1}, the same in each view"

    def classes(self) -> str:
        """Every class has images."""
        names = self.form.class_names
        held = np.bincount(self._view(0)[1].clip(0, len(names) - 1), minlength=len(names))
        empty = [names[label] for label in np.flatnonzero(held == 0)]
        spread = f"images of {len(names)} classes: {held.min()} / {np.median(held):g} / {held.max()} (min/median/max)"
        require(not empty, f"{spread}; {len(empty)} classes without images: {listed(empty)}")
        return spread

    def values(self) -> str:
        """Tokens below V, codes below 2^K, features finite."""
        wrong = self._faults("range", "features")
        faults = [f"{wrong['range']} rows with a token or code out of range"] if "range" in wrong else []
        faults += [f"{wrong['features']} rows of features that are not finite"] if "features" in wrong else []
        require(not faults, listed(faults))
        return f"tokens < {self.form.codebook_size}, codes < {self.form.positions}"

    def structure(self) -> str:
        """Every split halves its cluster: all L codes of an image are distinct. Children are named by raster order."""
        wrong = self._faults("halves", "names")
        faults = [f"{wrong['halves']} rows with splits that are not halves"] if "halves" in wrong else []
        faults += [f"{wrong['names']} rows name children otherwise than by raster order"] if "names" in wrong else []
        require(not faults, listed(faults))
        return f"equal halves at each of {self.form.last_stage} splits"

    def codebook(self) -> str:
        """Use of the codebook; not collapsed."""
        nothing = torch.zeros(self.form.last_stage + 1, self.form.codebook_size)
        counts = sum((part.counts for part in self.parts), nothing)
        use = codebook_use(counts)
        most = float(counts.sum(0).max() / counts.sum().clamp_min(1))
        stages = " ".join(f"{value:.1f}" for value in use.perplexity_by_stage)
        return require(
            most <= MOST_ONE_TOKEN,
            f"{use.share:.1%} used; perplexity {use.perplexity:.1f}, by stage {stages}; the most frequent token is "
            f"{most:.1%} of all",
        )

    def quarantine(self) -> str:
        """quarantine.parquet lists what the parts' metadata do, and it is little."""
        with storage.open(storage.join(self.folder, "quarantine.parquet")) as file:
            table = pq.read_table(file).to_pylist()
        rows = {tuple(row.get(name) for name in ("image_id", "path", "reason")) for row in table}
        require(rows == self._broken(), f"quarantine.parquet lists {len(rows)} images, the parts {len(self._broken())}")
        share = len(rows) / max(1, len(rows) + self.about["images"])
        return require(share <= MOST_BROKEN, f"{len(rows)} broken images, {share:.2%}")

    def configuration(self) -> str:
        """The format is the one that the configuration and its tokenizer give."""
        assert self.expected is not None
        wrong = [
            f"{name} is {getattr(self.form, name)!r:.60}, expected {getattr(self.expected, name)!r:.60}"
            for name in differences(self.form, self.expected)
        ]
        require(not wrong, listed(wrong))
        return f"as configured, of tokenizer {self.expected.fingerprint}"

    def source(self) -> str:
        """No image of the source is left out. Archives are walked through."""
        assert self.images is not None
        count, held, broken = self.images[0].count(), self.about["images"], self.about["quarantined"]
        return require(held <= count <= held + broken, f"{held} tokenized and {broken} broken of {count}")

    def sample(self) -> str:
        """Some images, encoded again: the same tokens, and decoding them gives the image back."""
        assert self.images is not None and self.tokenizer is not None
        stored, pictures = [], []
        for unit, view, ids, labels, images in some_images(*self.images):
            tables = [token_parts.read_part(path) for path in self.there.get((unit, view), [])]
            arrays = [token_parts.to_arrays(table) for table in tables]
            names = [table["image_id"].to_pylist() for table in tables]
            rows = {name: (table, row) for table, some in enumerate(names) for row, name in enumerate(some)}
            for name, label, image in zip(ids, labels, images, strict=True):
                require(name in rows, f"image {name} has no row in unit {unit}, view {view}")
                table, row = rows[name]
                require(arrays[table]["labels"][row] == label, f"image {name} has another label than in its source")
                stored.append([torch.from_numpy(arrays[table][column][row]) for column in ("codes", "content")])
                pictures.append(image)
        require(pictures, "no image of the sample can be read")
        floats = to_float(np.stack(pictures))
        codes, content = (torch.stack(column) for column in zip(*stored, strict=True))
        again = self.tokenizer.encode(floats)
        equal = torch.cat((again.codes == codes, again.flat_content() == content), dim=1).double()
        decoded = self.tokenizer.decode(GranularitySequence.from_flat(codes, content))
        require(decoded.isfinite().all(), "decoded tokens are not finite")
        own = float(psnr(mean_squared_error(floats, self.tokenizer.decode(again))).mean())
        found = float(psnr(mean_squared_error(floats, decoded)).mean())
        detail = (
            f"{len(pictures)} images encoded again: {equal.mean():.2%} of the tokens the same, "
            f"{int(equal.all(1).sum())} images wholly; decoded at {found:.1f} dB, the tokenizer itself {own:.1f} dB"
        )
        return require(equal.mean() >= LEAST_EQUAL and found >= max(LEAST_PSNR, own - 0.5), detail)


def differences(one: TokenFormat, other: TokenFormat) -> list[str]:
    """The names of the fields that differ."""
    return [item.name for item in fields(one) if getattr(one, item.name) != getattr(other, item.name)]


def some_images(
    source: ImageSource, config: Config, count: int
) -> Iterator[tuple[int, int, list[str], list[int], np.ndarray]]:
    """About `count` images of up to 8 units, the same each time: unit, view, ids, labels, uint8 (n, S, S, C)."""
    units = np.random.default_rng(0).permutation(len(source.units))[:8].tolist()
    data = replace(config.data, unit_images=-(-count // max(1, len(units))))
    for number, unit in enumerate(units):
        view = number % data.views
        piece = next(read_pieces(source.reader(), source.units[unit], data, view, config.seed))
        yield unit, view, piece.ids, piece.labels, piece.images


# ---- weights ----


def check_weights(folder: str, kind: str, images: np.ndarray | None = None) -> Iterator[Check]:
    """The checks of a tokenizer or sampler folder. images: uint8 (N, S, S, C), for the round trip."""
    loaded: dict[str, Any] = {}

    def metadata() -> str:
        if storage.exists(storage.join(folder, checkpoint.HALF)):
            checkpoint.load_sampler(folder)  # says what is missing
        loaded["about"] = checkpoint.read_metadata(folder)
        return f"{kind}, tokenizer {checkpoint.tokenizer_fingerprint(loaded['about'])}"

    def config() -> str:
        loaded["config"] = config = checkpoint.model_config(folder)
        names, classes = loaded["about"]["class_names"], config.data.num_classes
        require(len(names) == classes, f"metadata.json names {len(names)} classes, data.num_classes={classes}")
        return f"{config.name}, {classes} classes, {config.data.image_size} pixels"

    def weights() -> str:
        if kind == "sampler":
            loaded["sampler"] = checkpoint.load_sampler(folder)
            loaded["tokenizer"] = loaded["sampler"].tokenizer
        else:
            loaded["tokenizer"] = checkpoint.load_tokenizer(folder)
        names = ("tokenizer", *checkpoint.PARTS) if kind == "sampler" else ("tokenizer",)
        return finite(
            {f"{name}: {key}": v for name in names for key, v in checkpoint.read_tensors(folder, name).items()}
        )

    def round_trip() -> str:
        tokenizer, data = loaded["tokenizer"], loaded["config"].data
        noise = images is None
        size = (4, data.image_size, data.image_size, data.channels)
        pixels = np.random.default_rng(0).integers(0, 256, size, np.uint8) if images is None else images
        sequence = tokenizer.encode(to_float(pixels))
        decoded = tokenizer.decode(sequence)
        require(decoded.isfinite().all(), "reconstructions are not finite")
        value = float(psnr(mean_squared_error(to_float(pixels), decoded)).mean())
        used = codebook_use(code_counts(sequence, tokenizer.config.codebook_size)).share
        detail = f"{len(pixels)} {'images of noise' if noise else 'images'}: {value:.1f} dB, {used:.1%} of the codebook"
        return require(noise or value >= LEAST_PSNR, detail)

    def draw() -> str:
        sampler = loaded["sampler"]
        labels = list(range(min(3, len(sampler.class_names))))
        one, again, other = (sampler.generate(labels, seed=seed) for seed in (0, 0, 1))
        require(np.array_equal(one, again), "the same seed gives other images")
        require(not np.array_equal(one, other), "another seed gives the same images")
        require(one.std() > 0, "images of one even colour")
        return f"{len(labels)} classes: uint8 {one.shape[1:]}, the same by seed, another by another seed"

    others: list[Step] = [("round trip", round_trip)] + ([("draw", draw)] if kind == "sampler" else [])
    return run([("metadata.json", metadata), ("config.yaml", config), ("weights", weights)], others)


def finite(tensors: Mapping[str, Tensor]) -> str:
    """How much there is. Raises ValueError naming tensors with NaN or infinities."""
    bad = [name for name, value in tensors.items() if not value.isfinite().all()]
    require(not bad, f"not finite: {listed(bad)}")
    return f"{sum(value.numel() for value in tensors.values()):,} numbers in {len(tensors)} tensors, all finite"


def check_training(folder: str) -> Iterator[Check]:
    """The checks of a training checkpoint, step-XXXXXXXX."""
    loaded: dict[str, Any] = {}

    def files() -> str:
        loaded["about"] = checkpoint.checked_metadata(folder)
        return f"size and checksum of {len(loaded['about']['files'])} files as written"

    def step() -> str:
        name = re.search(r"step-(\d{8})/?$", folder)
        require(name and int(name[1]) == loaded["about"]["step"], f"{folder} is of step {loaded['about']['step']}")
        return f"{loaded['about']['step']}"

    def config() -> str:
        return checkpoint.model_config(folder).name

    def weights() -> str:
        state = {name: checkpoint.read_tensors(folder, name) for name in ("model", "ema", "optimizer")}
        shapes = {name: value.shape for name, value in state["model"].items()}
        strange = [name for name, value in state["ema"].items() if shapes.get(name) != value.shape]
        require(not strange, f"averages that are of no module: {listed(strange)}")
        owners = {name.split("/")[1] for name in state["optimizer"]} - state["model"].keys()
        require(not owners, f"moments of no parameter: {listed(sorted(owners))}")
        return finite({f"{file}: {name}": value for file, part in state.items() for name, value in part.items()})

    return run([("files", files)], [("step", step), ("config.yaml", config), ("weights", weights)])
