"""Is an artifact what it says it is? Checks of token sets, tokenizers, samplers and training checkpoints.

A check is a name and a function that returns its findings, or raises what is wrong; `run` makes lines of them.
Nothing is written or trained, and no Ray is needed: threads read the parts of a token set.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from nvg import storage
from nvg.artifacts import models
from nvg.artifacts.files import read_tensors
from nvg.autoencoder import Autoencoder
from nvg.config import Config
from nvg.data import ImageSource, tokens
from nvg.data.features import CHECKSUM, features_file, read_features
from nvg.data.images import to_float
from nvg.data.stream import read_pieces
from nvg.evaluation.reconstruction import code_counts, codebook_use, mean_squared_error, psnr
from nvg.generator import Sampler
from nvg.granularity import GranularitySequence, last_stage, positions_of_codes
from nvg.training import checkpoint

LEAST_PSNR = 10.0  # dB of a reconstruction: a picture of its mean colour alone has about that
LEAST_EQUAL = 0.95  # share of tokens that encoding again gives: another batch size flips near-ties, and what follows
MOST_BROKEN = 0.01  # share of images in quarantine
MOST_ONE_TOKEN = 0.9  # share of the most frequent token: above, the codebook has collapsed
FEATURE_ROWS = 64  # that are read together: 25 MB at the full size
Steps = Mapping[str, Callable[[], str]]


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'FAIL':<4}  {self.name}: {self.detail}"


def run(needed: Steps, others: Steps) -> Iterator[Check]:
    """The checks in order. needed: what all others stand on; the first of them that fails is the last check."""
    for name, step in {**needed, **others}.items():
        try:
            yield Check(name, True, step())
        except (ValueError, OSError, RuntimeError, LookupError) as error:
            yield Check(name, False, " ".join(str(error).split()))
            if name in needed:
                return


def unless(faults: Iterable[object], detail: str) -> str:
    """The detail. Raises ValueError naming the first faults where there are some."""
    texts = [str(fault) for fault in faults]
    if texts:
        raise ValueError("; ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else ""))
    return detail


def require(ok: object, detail: str) -> str:
    """The detail, returned where all is well, raised as ValueError where it is not."""
    return unless([] if ok else [detail], detail)


def some_images(source: ImageSource, config: Config, count: int) -> Iterator[tuple[int, int, list, list, np.ndarray]]:
    """About `count` images of up to 8 units, the same each time: unit, view, ids, labels, uint8 (n, S, S, C)."""
    units = np.random.default_rng(0).permutation(len(source.units))[:8].tolist()
    data = replace(config.data, unit_images=-(-count // max(1, len(units))))
    for number, unit in enumerate(units):
        view = number % data.views
        piece = next(read_pieces(source.reader(), source.units[unit], data, view, config.seed))
        yield unit, view, piece.ids, piece.labels, piece.images


# ---- tokens ----


@dataclass(frozen=True)
class PartContents:
    """What the checks need of a part, without its tokens."""

    ids_and_labels: np.ndarray  # int64 (2, n): hashes of the ids, labels
    quarantined: set[tuple[str, str, str]]  # (image_id, path, reason)
    faults: Counter[str]  # rows by what is wrong with them
    uses: Tensor  # of each entry of the codebook at each stage: int64 (K + 1, V)


def read_contents(path: str, view: int, form: tokens.TokenFormat, *, raster_names: bool) -> PartContents:
    """Read a part. raster_names: whether children are named by raster order. Raises DataError where it is damaged, and
    ValueError where it is of another format."""
    table = tokens.read_part(path)
    unless(differences(tokens.part_format(table.schema, path), form), "")
    arrays = tokens.to_arrays(table)
    codes, content = torch.from_numpy(arrays["codes"]), torch.from_numpy(arrays["content"])
    outside = (content >= form.codebook_size).any(1) | (codes >= form.positions).any(1)
    halved = (codes.sort(dim=1).values == torch.arange(form.positions)).all(1)
    misnamed = misnamed_children(codes[halved]) if raster_names else torch.zeros(0, dtype=torch.bool)
    wrong_features = np.zeros(len(codes), bool)
    if form.feature_shape is not None:
        wrong_features = ~finite_features(path, arrays[CHECKSUM], form.feature_shape)
    faults = {
        "of another view than their part": table["view"].to_numpy() != view,
        "with a token not below V or a code not below 2^K": outside,
        "with features that are not finite": wrong_features,
        "with splits that are not halves": ~halved,
        "that name children otherwise than by raster order": misnamed,
    }
    ids = np.fromiter(map(hash, table["image_id"].to_pylist()), np.int64, table.num_rows)
    quarantine = tokens.part_quarantine(table.schema, path)
    return PartContents(
        np.stack((ids, arrays["labels"])),
        {(item.image_id, item.path, item.reason) for item in quarantine},
        Counter({name: int(wrong.sum()) for name, wrong in faults.items()}),
        code_counts(GranularitySequence.from_flat(codes[~outside], content[~outside]), form.codebook_size),
    )


def finite_features(part: str, checksums: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Which rows of a part have features that are finite: bool (n,). Raises DataError where one is damaged."""
    finite = np.zeros(len(checksums), bool)
    for first in range(0, len(finite), FEATURE_ROWS):
        rows = slice(first, first + FEATURE_ROWS)
        finite[rows] = np.isfinite(read_features(part, first, checksums[rows], shape)).all((1, 2))
    return finite


def misnamed_children(codes: Tensor) -> Tensor:
    """Which images have a split whose bit 0 is not the child that comes first: complete codes (N, L) -> (N,) bool."""
    order = positions_of_codes(codes)
    misnamed = torch.zeros(len(order), dtype=torch.bool)
    for stage in range(1, last_stage(codes.shape[1]) + 1):
        first = order.unflatten(1, (2**stage, -1)).amin(dim=2)
        misnamed |= (first[:, 0::2] > first[:, 1::2]).any(1)
    return misnamed


class TokenContents:
    """The contents of all parts of a token set, added up."""

    def __init__(self, form: tokens.TokenFormat, views: int) -> None:
        self.parts = 0
        self.quarantined: set[tuple[str, str, str]] = set()
        self.faults: Counter[str] = Counter()
        self.uses = torch.zeros(form.last_stage + 1, form.codebook_size, dtype=torch.int64)
        self._rows: dict[int, list[np.ndarray]] = {view: [] for view in range(views)}

    def add(self, view: int, part: PartContents) -> None:
        """Add a part."""
        self.parts += 1
        self.quarantined |= part.quarantined
        self.faults += part.faults
        self.uses += part.uses
        self._rows.setdefault(view, []).append(part.ids_and_labels)

    @cached_property
    def views(self) -> dict[int, np.ndarray]:
        """Hashes of ids and labels by view, sorted by the former: int64 (2, n). Read it when all parts are added."""
        rows = {view: np.concatenate([np.zeros((2, 0), np.int64), *some], axis=1) for view, some in self._rows.items()}
        return {view: some[:, some[0].argsort(kind="stable")] for view, some in rows.items()}

    def faulty_rows(self, *words: str) -> list[str]:
        """The faults of rows that any of the words names, with their counts."""
        return [f"{n} rows {name}" for name, n in self.faults.items() if any(word in name for word in words)]


class TokenChecks:
    """The checks of a token set, and what else is known of it: the format that the configuration gives, the tokenizer,
    and the images (source, configuration, how many to encode again)."""

    metadata: dict[str, Any]  # set by the first check
    form: tokens.TokenFormat  # set by the first check
    contents: TokenContents  # set by `_contents`

    def __init__(
        self,
        folder: str,
        expected: tokens.TokenFormat | None = None,
        tokenizer: Autoencoder | None = None,
        images: tuple[ImageSource, Config, int] | None = None,
    ) -> None:
        self.folder, self.expected, self.tokenizer, self.images = folder, expected, tokenizer, images
        self.parts: dict[tuple[int, int], list[str]] = {}  # (unit, view) -> paths

    def run(self) -> Iterator[Check]:
        """All checks that can be made with what is known."""
        others: dict[str, Callable[[], str]] = {
            "parts": self._parts,
            "part contents": self._contents,
            "counts": self._counts,
            "ids": self._ids,
            "labels": self._labels,
            "classes": self._classes,
            "values": self._values,
            "structure": self._structure,
            "codebook": self._codebook,
            "quarantine": self._quarantine,
        }
        if self.expected is not None:
            others["configuration"] = partial(self._configuration, self.expected)
        if self.images is not None:
            others["images"] = partial(self._images, self.images[0])
            if self.tokenizer is not None:
                others["sample"] = partial(self._sample, self.tokenizer, *self.images)
        return run({"metadata.json": self._metadata}, others)

    def _metadata(self) -> str:
        self.metadata = tokens.read_metadata(self.folder)
        self.form = form = tokens.metadata_format(self.metadata, self.folder)
        views = self.metadata["views"]
        require(form.class_names and views, "no classes, or no views")
        return f"tokenizer {form.fingerprint}, K={form.last_stage}, V={form.codebook_size}, {views} views"

    def _parts(self) -> str:
        self.parts = tokens.part_files(self.folder)
        units = len(self.images[0].units) if self.images else 1 + max((unit for unit, _ in self.parts), default=-1)
        expected = {(unit, view) for unit in range(units) for view in range(self.metadata["views"])}
        files = {path for paths in self.parts.values() for path in paths}
        features = {features_file(path) for path in files if self.form.feature_shape is not None}
        extra = set(storage.list_files(self.folder, (".parquet", ".npy"))) - files - features
        faults = [f"(unit, view) {key} is missing" for key in sorted(expected - set(self.parts))]
        faults += [f"(unit, view) {key} does not belong" for key in sorted(set(self.parts) - expected)]
        names = sorted(PurePosixPath(path).name for path in extra)
        faults += [f"{name} is of no whole unit, or is there twice" for name in names if name != "quarantine.parquet"]
        return unless(faults or ([] if files else ["there are none"]), f"{len(files)}, of {units} units")

    def _contents(self) -> str:
        """Reads all parts, and keeps of them what the checks after this need."""
        self.contents = TokenContents(self.form, self.metadata["views"])
        raster_names = self.tokenizer is not None and self.tokenizer.config.child_order == "raster"

        def read(item: tuple[int, str]) -> PartContents | str:
            view, path = item
            try:
                return read_contents(path, view, self.form, raster_names=raster_names)
            except (ValueError, OSError) as error:
                return f"{path}: {error}"

        items = [(view, path) for (_, view), paths in self.parts.items() for path in paths]
        unusable = []
        with ThreadPoolExecutor(16) as pool:
            for (view, _), part in zip(items, pool.map(read, items), strict=True):
                if isinstance(part, str):
                    unusable.append(part)
                else:
                    self.contents.add(view, part)
        return unless(unusable, f"{len(items)} parts of this format, of tokenizer {self.form.fingerprint}")

    def _counts(self) -> str:
        rows = [some.shape[1] for some in self.contents.views.values()]
        counts = {
            "images": rows[0],
            "rows": sum(rows),
            "parts": self.contents.parts,
            "quarantined": len(self.contents.quarantined),
        }
        told = self.metadata
        wrong = [f"{name} is {told[name]}, found {n}" for name, n in counts.items() if n != told[name]]
        return unless(wrong, ", ".join(f"{n} {name}" for name, n in counts.items()))

    def _ids(self) -> str:
        faults, views = self.contents.faulty_rows("view"), self.contents.views
        for view, (ids, _) in views.items():
            twice, alone = len(ids) - len(np.unique(ids)), len(np.setxor1d(ids, views[0][0]))
            faults += [f"{twice} ids twice in view {view}"] if twice else []
            faults += [f"{alone} ids are in one of the views 0 and {view} alone"] if alone else []
        return unless(faults, f"{views[0].shape[1]} in each view, each once")

    def _labels(self) -> str:
        last, views = len(self.form.class_names) - 1, self.contents.views
        faults = []
        for view, (ids, labels) in views.items():
            outside = int(((labels < 0) | (labels > last)).sum())
            faults += [f"{outside} labels of view {view} are none of 0 ... {last}"] if outside else []
            differ = np.array_equal(ids, views[0][0]) and not np.array_equal(labels, views[0][1])
            faults += [f"images of view {view} have other labels than in view 0"] if differ else []
        return unless(faults, f"0 ... {last}, the same in each view")

    def _classes(self) -> str:
        names = self.form.class_names
        labels = self.contents.views[0][1].clip(0, len(names) - 1)
        counts = np.bincount(labels, minlength=len(names))
        spread = f"{counts.min()} / {np.median(counts):g} / {counts.max()} (min/median/max)"
        missing = (f"no images of class {names[label]}" for label in np.flatnonzero(counts == 0))
        return unless(missing, f"images of {len(names)} classes: {spread}")

    def _values(self) -> str:
        faults = self.contents.faulty_rows("below", "finite")
        return unless(faults, f"tokens < {self.form.codebook_size}, codes < {self.form.positions}")

    def _structure(self) -> str:
        """All L codes of an image are distinct, which makes every split of every stage one into halves."""
        faults = self.contents.faulty_rows("halves", "children")
        return unless(faults, f"equal halves at each of {self.form.last_stage} splits")

    def _codebook(self) -> str:
        use, total = codebook_use(self.contents.uses), self.contents.uses.sum(dim=0)
        most = float(total.max() / total.sum().clamp_min(1))
        stages = " ".join(f"{value:.1f}" for value in use.perplexity_by_stage)
        detail = f"{use.share:.1%} used, perplexity {use.perplexity:.1f} (by stage {stages})"
        return require(most <= MOST_ONE_TOKEN, f"{detail}, the most frequent token is {most:.1%} of all")

    def _quarantine(self) -> str:
        with storage.open(storage.join(self.folder, "quarantine.parquet")) as file:
            table = pq.read_table(file).to_pylist()
        listed = {tuple(row.get(name) for name in ("image_id", "path", "reason")) for row in table}
        broken = self.contents.quarantined
        require(listed == broken, f"quarantine.parquet lists {len(listed)} images, the parts {len(broken)}")
        share = len(listed) / max(1, len(listed) + self.metadata["images"])
        return require(share <= MOST_BROKEN, f"{len(listed)} broken images, {share:.2%}")

    def _configuration(self, expected: tokens.TokenFormat) -> str:
        return unless(differences(self.form, expected), f"as configured, of tokenizer {expected.fingerprint}")

    def _images(self, source: ImageSource) -> str:
        count, tokenized, broken = source.count(), self.metadata["images"], self.metadata["quarantined"]
        detail = f"{tokenized} tokenized and {broken} broken, of {count}"
        return require(tokenized <= count <= tokenized + broken, detail)

    def _sample(self, tokenizer: Autoencoder, source: ImageSource, config: Config, count: int) -> str:
        """Encodes some images again, and decodes the tokens that stand for them."""
        codes, content, pictures = [], [], []
        for unit, view, ids, labels, images in some_images(source, config, count):
            rows = self._stored_rows(unit, view)
            for name, label, image in zip(ids, labels, images, strict=True):
                require(name in rows, f"image {name} has no row in unit {unit}, view {view}")
                row = rows[name]
                require(row["labels"] == label, f"image {name} has label {row['labels']}, and {label} in its source")
                codes.append(torch.from_numpy(row["codes"]))
                content.append(torch.from_numpy(row["content"]))
                pictures.append(image)
        floats = to_float(np.stack(pictures))
        stored, again = (
            GranularitySequence.from_flat(torch.stack(codes), torch.stack(content)),
            tokenizer.encode(floats),
        )
        equal = torch.cat((again.codes == stored.codes, again.flat_content() == stored.flat_content()), dim=1)
        stored_psnr, psnr_again = (mean_psnr(floats, tokenizer.decode(sequence)) for sequence in (stored, again))
        return require(
            equal.double().mean() >= LEAST_EQUAL and stored_psnr >= max(LEAST_PSNR, psnr_again - 0.5),
            f"{len(pictures)} images encoded again: {equal.double().mean():.2%} of the tokens the same, "
            f"{int(equal.all(1).sum())} images wholly; decoded at {stored_psnr:.1f} dB, "
            f"the tokenizer itself {psnr_again:.1f} dB",
        )

    def _stored_rows(self, unit: int, view: int) -> dict[str, dict[str, Any]]:
        """The rows of a unit's view by image id, each its columns by name."""
        rows = {}
        for table in map(tokens.read_part, self.parts.get((unit, view), [])):
            arrays = tokens.to_arrays(table)
            for number, name in enumerate(table["image_id"].to_pylist()):
                rows[name] = {column: values[number] for column, values in arrays.items()}
        return rows


def mean_psnr(images: Tensor, reconstructions: Tensor) -> float:
    """The mean PSNR in dB over images (N, C, H, W) in [-1, 1]."""
    return float(psnr(mean_squared_error(images, reconstructions)).mean())


def differences(one: tokens.TokenFormat, other: tokens.TokenFormat) -> list[str]:
    """What differs in two formats."""
    pairs = {item.name: (getattr(one, item.name), getattr(other, item.name)) for item in fields(one)}
    return [f"{name} is {ours!r:.60}, not {theirs!r:.60}" for name, (ours, theirs) in pairs.items() if ours != theirs]


# ---- weights ----


def check_weights(folder: str, images: np.ndarray | None = None) -> Iterator[Check]:
    """The checks of a tokenizer's or sampler's folder. images: uint8 (N, S, S, C) for the round trip, else noise."""
    return WeightChecks(folder, images).run()


class WeightChecks:
    """The checks of `check_weights`."""

    metadata: dict[str, Any]  # set by the first check, the others by those that are named as they are
    config: Config
    tokenizer: Autoencoder
    sampler: Sampler | None  # None for a tokenizer alone

    def __init__(self, folder: str, images: np.ndarray | None) -> None:
        self.folder, self.images = folder, images

    def run(self) -> Iterator[Check]:
        """All checks."""
        needed = {"metadata.json": self._metadata, "config.yaml": self._config, "weights": self._weights}
        return run(needed, {"round trip": self._round_trip, "draw": self._draw})

    def _metadata(self) -> str:
        if storage.exists(storage.join(self.folder, models.HALF)):
            models.load_sampler(self.folder)  # says what is missing
        self.metadata = models.read_metadata(self.folder)
        return f"{self.metadata['kind']}, tokenizer {models.tokenizer_fingerprint(self.metadata)}"

    def _config(self) -> str:
        self.config = config = models.model_config(self.folder)
        names, classes = self.metadata["class_names"], config.data.num_classes
        require(len(names) == classes, f"metadata.json names {len(names)} classes, data.num_classes={classes}")
        return f"{config.name}, {classes} classes, {config.data.image_size} pixels"

    def _weights(self) -> str:
        if self.metadata["kind"] == "sampler":
            self.sampler = models.load_sampler(self.folder)
            self.tokenizer = self.sampler.tokenizer
            return finite(self.folder, "tokenizer", *models.PARTS)
        self.sampler, self.tokenizer = None, models.load_tokenizer(self.folder)
        return finite(self.folder, "tokenizer")

    def _round_trip(self) -> str:
        data, images, noise = self.config.data, self.images, self.images is None
        if images is None:
            size = (4, data.image_size, data.image_size, data.channels)
            images = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        floats = to_float(images)
        sequence = self.tokenizer.encode(floats)
        value, used = mean_psnr(floats, self.tokenizer.decode(sequence)), sequence.flat_content().unique().numel()
        detail = f"{len(floats)} images{' of noise' if noise else ''}: {value:.1f} dB, {used} tokens in use"
        return require(math.isfinite(value) and (noise or value >= LEAST_PSNR), detail)

    def _draw(self) -> str:
        if self.sampler is None:
            return "a tokenizer alone"
        labels = list(range(min(3, len(self.sampler.class_names))))
        one, again, other = (self.sampler.generate(labels, seed=seed) for seed in (0, 0, 1))
        faults = ["the same seed gives other images"] if not np.array_equal(one, again) else []
        faults += ["another seed gives the same images, or all are of one colour"] if (one == other).all() else []
        return unless(faults, f"{len(labels)} classes: uint8 {one.shape[1:]}, the same by seed, others by another seed")


def check_training(folder: str) -> Iterator[Check]:
    """The checks of a training checkpoint, step-XXXXXXXX."""

    def files() -> str:
        return f"size and checksum of {len(checkpoint.checked_metadata(folder)['files'])} files as written"

    def step() -> str:
        step, name = checkpoint.checked_metadata(folder)["step"], re.search(r"step-(\d{8})/?$", folder)
        return require(name and int(name[1]) == step, f"{step}")

    def weights() -> str:
        model, ema, moments = (read_tensors(folder, name) for name in ("model", "ema", "optimizer"))
        unless((name for name, value in ema.items() if name not in model or model[name].shape != value.shape), "")
        unless(sorted({name.split("/")[1] for name in moments} - model.keys()), "")
        return finite(folder, "model", "ema", "optimizer")

    def config() -> str:
        return models.model_config(folder).name

    return run({"files": files}, {"step": step, "config.yaml": config, "weights": weights})


def finite(folder: str, *names: str) -> str:
    """How many numbers the files hold. Raises ValueError naming tensors with NaN or infinities."""
    tensors = {f"{name}: {key}": v for name in names for key, v in read_tensors(folder, name).items()}
    bad = (f"{name} is not finite" for name, value in tensors.items() if not value.isfinite().all())
    numbers = sum(value.numel() for value in tensors.values())
    return unless(bad, f"{numbers:,} numbers in {len(tensors)} tensors, all finite")


def check_folder(folder: str) -> Iterator[Check]:
    """The checks of any artifact that need nothing but its folder (path or URL)."""
    path = storage.join(folder, storage.LAST_FILE)
    if tokens.part_files(folder):
        yield from TokenChecks(folder).run()
        return
    metadata = storage.read_json(path) if storage.exists(path) else None
    training = isinstance(metadata, dict) and metadata.get("kind") == "training"
    yield from check_training(folder) if training else check_weights(folder)
