"""Is an artifact what it says it is? Checks of token sets, tokenizers, samplers and training checkpoints.

A check is a name and a function that returns what it found, or raises what is wrong; `run` makes lines of them.
Nothing is written or trained, and no Ray is needed: threads read the parts of a token set.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
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
from nvg.data.images import to_float
from nvg.data.stream import read_pieces
from nvg.evaluation.reconstruction import code_counts, codebook_use, mean_squared_error, psnr
from nvg.granularity import GranularitySequence, positions_of_codes
from nvg.training import checkpoint

LEAST_PSNR = 10.0  # dB of a reconstruction: a picture of its mean colour alone has about that
LEAST_EQUAL = 0.95  # share of tokens that encoding again gives: another batch size flips near-ties, and what follows
MOST_BROKEN = 0.01  # share of images in quarantine
MOST_ONE_TOKEN = 0.9  # share of the most frequent token: above, the codebook has collapsed
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
    found = list(faults)
    if found:
        raise ValueError("; ".join(map(str, found[:3])) + (f" and {len(found) - 3} more" if len(found) > 3 else ""))
    return detail


def require(ok: object, detail: str) -> str:
    """The detail, as what was found or as what is wrong."""
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


class TokenChecks:
    """The checks of a token set, and what else is known of it: the format that the configuration gives, the tokenizer,
    and the images (source, configuration, how many to encode again)."""

    def __init__(
        self,
        folder: str,
        expected: tokens.TokenFormat | None = None,
        tokenizer: Autoencoder | None = None,
        images: tuple[ImageSource, Config, int] | None = None,
    ) -> None:
        self.folder, self.expected, self.tokenizer, self.images = folder, expected, tokenizer, images

    def run(self) -> Iterator[Check]:
        """All checks that can be made with what is known."""
        others = {
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
        others |= {"configuration": self._configuration} if self.expected else {}
        others |= {"images": self._images} if self.images else {}
        others |= {"sample": self._sample} if self.images and self.tokenizer else {}
        return run({"metadata.json": self._metadata}, others)

    def _metadata(self) -> str:
        self.about = tokens.read_metadata(self.folder)
        self.form = form = tokens.metadata_format(self.about, self.folder)
        require(form.class_names and self.about["views"], "no classes, or no views")
        return f"tokenizer {form.fingerprint}, K={form.last_stage}, V={form.codebook_size}, {self.about['views']} views"

    def _parts(self) -> str:
        self.there = tokens.part_files(self.folder)
        units = len(self.images[0].units) if self.images else 1 + max((unit for unit, _ in self.there), default=-1)
        wanted = {(unit, view) for unit in range(units) for view in range(self.about["views"])}
        used = {path for paths in self.there.values() for path in paths}
        extra = set(storage.list_files(self.folder, (".parquet",))) - used
        faults = [f"(unit, view) {place} is missing" for place in sorted(wanted - set(self.there))]
        faults += [f"(unit, view) {place} does not belong" for place in sorted(set(self.there) - wanted)]
        names = sorted(PurePosixPath(path).name for path in extra)
        faults += [f"{name} is of no whole unit, or is there twice" for name in names if name != "quarantine.parquet"]
        return unless(faults or ([] if used else ["there are none"]), f"{len(used)}, of {units} units")

    def _contents(self) -> str:
        """Reads all parts, and keeps of them what the checks after this need."""
        todo = [(view, path) for (_, view), paths in self.there.items() for path in paths]
        empty = [np.zeros((2, 0), np.int64)]
        found = {view: list(empty) for view in range(self.about["views"])}
        unusable, self.used_parts, self.broken, self.faults = [], 0, set(), Counter[str]()
        self.use = torch.zeros(self.form.last_stage + 1, self.form.codebook_size, dtype=torch.int64)
        with ThreadPoolExecutor(16) as pool:
            for (view, _), part in zip(todo, pool.map(lambda item: self._read(*item), todo), strict=True):
                if isinstance(part, str):
                    unusable.append(part)
                    continue
                found.setdefault(view, list(empty)).append(part[0])
                self.broken |= part[1]
                self.faults += part[2]
                self.use += part[3]
                self.used_parts += 1
        rows = {view: np.concatenate(some, axis=1) for view, some in found.items()}
        self.views = {view: some[:, some[0].argsort(kind="stable")] for view, some in rows.items()}  # (ids, labels)
        return unless(unusable, f"{len(todo)} parts of this format, of tokenizer {self.form.fingerprint}")

    def _read(self, view: int, path: str) -> tuple[np.ndarray, set, Counter[str], Tensor] | str:
        """(hashes of ids, labels) (2, n); what is broken; rows with a fault; uses of each token at each stage."""
        try:
            table = tokens.read_part(path)
            form = tokens.part_format(table.schema, path)
            broken = {(item.image_id, item.path, item.reason) for item in tokens.part_quarantine(table.schema, path)}
            unless(differences(form, self.form), "")
        except (ValueError, OSError) as error:
            return f"{path}: {error}"
        arrays = tokens.to_arrays(table)
        codes, content = torch.from_numpy(arrays["codes"]), torch.from_numpy(arrays["content"])
        outside = (content >= form.codebook_size).any(1) | (codes >= form.positions).any(1)
        halved = (codes.sort(dim=1).values == torch.arange(form.positions)).all(1)
        order = positions_of_codes(codes[halved])
        misnamed = torch.zeros(len(order), dtype=torch.bool)
        if self.tokenizer and self.tokenizer.config.child_order == "raster":
            for stage in range(form.last_stage):  # of two siblings bit 0 is the one that comes first
                first = order.unflatten(1, (2 ** (stage + 1), -1)).amin(dim=2)
                misnamed |= (first[:, 0::2] > first[:, 1::2]).any(1)
        faults = {
            "of another view than their part": table["view"].to_numpy() != view,
            "with a token not below V or a code not below 2^K": outside,
            "with features that are not finite": ~np.isfinite(arrays.get("features", np.zeros((0, 1)))).all(1),
            "with splits that are not halves": ~halved,
            "that name children otherwise than by raster order": misnamed,
        }
        ids = np.fromiter(map(hash, table["image_id"].to_pylist()), np.int64, table.num_rows)
        counts = code_counts(GranularitySequence.from_flat(codes[~outside], content[~outside]), form.codebook_size)
        rows = Counter({name: int(wrong.sum()) for name, wrong in faults.items()})
        return np.stack((ids, arrays["labels"])), broken, rows, counts

    def _rows(self, *words: str) -> list[str]:
        return [f"{n} rows {name}" for name, n in self.faults.items() if any(word in name for word in words)]

    def _counts(self) -> str:
        rows = [some.shape[1] for some in self.views.values()]
        held = {"images": rows[0], "rows": sum(rows), "parts": self.used_parts, "quarantined": len(self.broken)}
        wrong = [f"{name} is {self.about[name]}, found {n}" for name, n in held.items() if n != self.about[name]]
        return unless(wrong, ", ".join(f"{n} {name}" for name, n in held.items()))

    def _ids(self) -> str:
        faults = self._rows("view")
        for view, (ids, _) in self.views.items():
            twice, alone = len(ids) - len(np.unique(ids)), len(np.setxor1d(ids, self.views[0][0]))
            faults += [f"{twice} ids twice in view {view}"] if twice else []
            faults += [f"{alone} ids are in one of the views 0 and {view} alone"] if alone else []
        return unless(faults, f"{self.views[0].shape[1]} in each view, each once")

    def _labels(self) -> str:
        last, faults = len(self.form.class_names) - 1, []
        for view, some in self.views.items():
            outside = int(((some[1] < 0) | (some[1] > last)).sum())
            faults += [f"{outside} labels of view {view} are none of 0 ... {last}"] if outside else []
            same_ids = np.array_equal(some[0], self.views[0][0])
            other = same_ids and not np.array_equal(some[1], self.views[0][1])
            faults += [f"images of view {view} have other labels than in view 0"] if other else []
        return unless(faults, f"0 ... {last}, the same in each view")

    def _classes(self) -> str:
        names = self.form.class_names
        held = np.bincount(self.views[0][1].clip(0, len(names) - 1), minlength=len(names))
        spread = f"images of {len(names)} classes: {held.min()} / {np.median(held):g} / {held.max()} (min/median/max)"
        return unless((f"no images of class {names[label]}" for label in np.flatnonzero(held == 0)), spread)

    def _values(self) -> str:
        faults = self._rows("below", "finite")
        return unless(faults, f"tokens < {self.form.codebook_size}, codes < {self.form.positions}")

    def _structure(self) -> str:
        """All L codes of an image are distinct, which makes every split of every stage one into halves."""
        return unless(self._rows("halves", "children"), f"equal halves at each of {self.form.last_stage} splits")

    def _codebook(self) -> str:
        use, total = codebook_use(self.use), self.use.sum(dim=0)
        most = float(total.max() / total.sum().clamp_min(1))
        stages = " ".join(f"{value:.1f}" for value in use.perplexity_by_stage)
        detail = f"{use.share:.1%} used, perplexity {use.perplexity:.1f} (by stage {stages})"
        return require(most <= MOST_ONE_TOKEN, f"{detail}, the most frequent token is {most:.1%} of all")

    def _quarantine(self) -> str:
        with storage.open(storage.join(self.folder, "quarantine.parquet")) as file:
            table = pq.read_table(file).to_pylist()
        listed = {tuple(row.get(name) for name in ("image_id", "path", "reason")) for row in table}
        require(listed == self.broken, f"quarantine.parquet lists {len(listed)} images, the parts {len(self.broken)}")
        share = len(listed) / max(1, len(listed) + self.about["images"])
        return require(share <= MOST_BROKEN, f"{len(listed)} broken images, {share:.2%}")

    def _configuration(self) -> str:
        assert self.expected is not None
        return unless(differences(self.form, self.expected), f"as configured, of tokenizer {self.expected.fingerprint}")

    def _images(self) -> str:
        assert self.images is not None
        count, held, broken = self.images[0].count(), self.about["images"], self.about["quarantined"]
        return require(held <= count <= held + broken, f"{held} tokenized and {broken} broken, of {count}")

    def _sample(self) -> str:
        """Encodes some images again, and decodes the tokens that stand for them."""
        assert self.images is not None and self.tokenizer is not None
        stored, pictures = [], []
        for unit, view, ids, labels, images in some_images(*self.images):
            rows: dict[str, tuple] = {}
            for table in map(tokens.read_part, self.there.get((unit, view), [])):
                arrays = tokens.to_arrays(table)
                rows |= dict(zip(table["image_id"].to_pylist(), zip(*arrays.values(), strict=True), strict=True))
            for name, label, image in zip(ids, labels, images, strict=True):
                require(name in rows, f"image {name} has no row in unit {unit}, view {view}")
                row = dict(zip(arrays, rows[name], strict=True))
                require(row["labels"] == label, f"image {name} has label {row['labels']}, and {label} in its source")
                stored.append((row["codes"], row["content"]))
                pictures.append(image)
        floats = to_float(np.stack(pictures))
        codes, content = (torch.from_numpy(np.stack(column)) for column in zip(*stored, strict=True))
        again, decoded = self.tokenizer.encode(floats), GranularitySequence.from_flat(codes, content)
        equal = torch.cat((again.codes == codes, again.flat_content() == content), dim=1)
        found, own = (
            float(psnr(mean_squared_error(floats, self.tokenizer.decode(some))).mean()) for some in (decoded, again)
        )
        return require(
            equal.double().mean() >= LEAST_EQUAL and found >= max(LEAST_PSNR, own - 0.5),
            f"{len(pictures)} images encoded again: {equal.double().mean():.2%} of the tokens the same, "
            f"{int(equal.all(1).sum())} images wholly; decoded at {found:.1f} dB, the tokenizer itself {own:.1f} dB",
        )


def differences(one: tokens.TokenFormat, other: tokens.TokenFormat) -> list[str]:
    """What differs in two formats."""
    pairs = {item.name: (getattr(one, item.name), getattr(other, item.name)) for item in fields(one)}
    return [f"{name} is {ours!r:.60}, not {theirs!r:.60}" for name, (ours, theirs) in pairs.items() if ours != theirs]


# ---- weights ----


def check_weights(folder: str, images: np.ndarray | None = None) -> Iterator[Check]:
    """The checks of a tokenizer's or sampler's folder. images: uint8 (N, S, S, C) for the round trip, else noise."""
    found: dict[str, Any] = {}

    def metadata() -> str:
        if storage.exists(storage.join(folder, models.HALF)):
            models.load_sampler(folder)  # says what is missing
        found["about"] = about = models.read_metadata(folder)
        return f"{about['kind']}, tokenizer {models.tokenizer_fingerprint(about)}"

    def config() -> str:
        found["config"] = config = models.model_config(folder)
        names, classes = found["about"]["class_names"], config.data.num_classes
        require(len(names) == classes, f"metadata.json names {len(names)} classes, data.num_classes={classes}")
        return f"{config.name}, {classes} classes, {config.data.image_size} pixels"

    def weights() -> str:
        whole = found["about"]["kind"] == "sampler"
        found["sampler"] = models.load_sampler(folder) if whole else None
        found["tokenizer"] = found["sampler"].tokenizer if whole else models.load_tokenizer(folder)
        return finite(folder, "tokenizer", *(models.PARTS if whole else ()))

    def round_trip() -> str:
        data = found["config"].data
        size = (4, data.image_size, data.image_size, data.channels)
        floats = to_float(np.random.default_rng(0).integers(0, 256, size, np.uint8) if images is None else images)
        sequence = found["tokenizer"].encode(floats)
        error = mean_squared_error(floats, found["tokenizer"].decode(sequence))
        value, used = float(psnr(error).mean()), sequence.flat_content().unique().numel()
        detail = f"{len(floats)} images{' of noise' if images is None else ''}: {value:.1f} dB, {used} tokens in use"
        return require(error.isfinite().all() and (images is None or value >= LEAST_PSNR), detail)

    def draw() -> str:
        if (sampler := found["sampler"]) is None:
            return "a tokenizer alone"
        labels = list(range(min(3, len(sampler.class_names))))
        one, again, other = (sampler.generate(labels, seed=seed) for seed in (0, 0, 1))
        faults = ["the same seed gives other images"] if not np.array_equal(one, again) else []
        faults += ["another seed gives the same images, or all are of one colour"] if (one == other).all() else []
        return unless(faults, f"{len(labels)} classes: uint8 {one.shape[1:]}, the same by seed, others by another seed")

    needed = {"metadata.json": metadata, "config.yaml": config, "weights": weights}
    return run(needed, {"round trip": round_trip, "draw": draw})


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
    about = storage.read_json(path) if storage.exists(path) else None
    training = isinstance(about, dict) and about.get("kind") == "training"
    yield from check_training(folder) if training else check_weights(folder)
