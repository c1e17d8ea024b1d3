"""Tokenizing on a real Ray: shards of any size, broken units, leftovers, and features beside the tokens."""

import math
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from nvg import config as configuration
from nvg.artifacts.models import load_tokenizer
from nvg.cluster import warn_of_small_store
from nvg.data import image_batches, open_source, token_batches
from nvg.data.images import to_float
from nvg.data.stream import read_view
from nvg.data.tokens import part_files, read_metadata, read_part, to_arrays
from nvg.errors import ConfigError, DataError, DiskFull
from pipelines.build_tokens import Encode, build_tokens
from tests.support.disk import small_disk
from tests.support.pictures import encode, pixels, write_tar
from tests.support.smoke import SMOKE, untrained_tokenizer

pytestmark = pytest.mark.timeout(900)  # jobs on a Ray that may share its cores


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards: 23 images of which the 5th is no image, and one that is all broken."""
    folder = tmp_path_factory.mktemp("shards")
    members = []
    for number in range(23):
        data = b"no image" if number == 4 else encode(pixels(number))
        members += [(f"{number:03d}.png", data), (f"{number:03d}.cls", b"%d" % (number % 3))]
    write_tar(folder / "a.tar", members)
    write_tar(folder / "b.tar", [("x.png", b"nothing"), ("x.cls", b"0")])
    return folder


def smoke(shards, *overrides):
    settings = ["data.source=webdataset", f"data.train={shards}", "data.unit_images=10", "data.views=2"]
    return configuration.load(SMOKE, [*settings, *overrides])


@pytest.fixture(scope="module")
def tokenizer(shards, tmp_path_factory):
    return untrained_tokenizer(smoke(shards), tmp_path_factory.mktemp("tokenizer") / "a", 0)


@pytest.fixture(scope="module")
def tokens(ray_cluster, shards, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    build_tokens(smoke(shards), tokenizer, str(folder))
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_a_shard_of_any_size_is_cut_into_parts_and_nothing_is_lost(tokens, tokenizer, shards):
    """A shard is read data.unit_images at a time: memory does not follow its size."""
    config = smoke(shards)
    there = part_files(str(tokens))
    assert sorted(there) == [(unit, view) for unit in range(2) for view in range(2)]
    names = [Path(path).name for path in there[0, 1]]
    assert names == [f"part-000000-view1-{piece:04d}{last}.parquet" for piece, last in ((0, ""), (1, ""), (2, "-last"))]
    assert [Path(path).name for path in there[1, 0]] == ["part-000001-view0.parquet"]
    tables = [read_part(path) for path in there[0, 1]]
    assert [table.num_rows for table in tables] == [9, 10, 3]  # of the first ten one is broken
    source = open_source(config.data, "train")
    images, ids, labels, broken = read_view(source, source.units[0], config.data, 1, config.seed)
    assert [i for table in tables for i in table["image_id"].to_pylist()] == ids and len(broken) == 1
    sequence = load_tokenizer(tokenizer).encode(to_float(images))
    arrays = [to_arrays(table) for table in tables]
    assert np.concatenate([array["labels"] for array in arrays]).tolist() == labels
    assert np.array_equal(np.concatenate([array["codes"] for array in arrays]), sequence.codes.numpy())
    assert np.array_equal(np.concatenate([array["content"] for array in arrays]), sequence.flat_content().numpy())


def test_broken_images_and_units_are_in_quarantine_once_whatever_the_views(tokens, shards):
    about = read_metadata(str(tokens))
    assert (about["images"], about["rows"], about["parts"], about["quarantined"]) == (22, 44, 8, 2)
    rows = pq.read_table(tokens / "quarantine.parquet").to_pylist()
    assert [row["path"] for row in rows] == [f"{shards}/a.tar#004", f"{shards}/b.tar#x"]
    assert all("not an image" in row["reason"] for row in rows)
    assert set(about["seconds_by_part"]) == {
        "reading",
        "encoder",
        "clustering",
        "quantization",
        "features",
        "writing",
    }


def test_a_restart_makes_what_is_missing_to_the_same_bytes_and_reads_nothing_else(tokens, tokenizer, shards, tmp_path):
    before = files(tokens)
    stamps = {path.name: path.stat().st_mtime_ns for path in tokens.iterdir()}
    for name in ("metadata.json", "part-000000-view1-0001.parquet", "part-000001-view0.parquet"):
        (tokens / name).unlink()
    assert sorted(part_files(str(tokens))) == [(0, 0), (1, 1)]  # a unit with a missing piece is not there
    build_tokens(smoke(shards), tokenizer, str(tokens))
    after = files(tokens)
    assert {name: data for name, data in after.items() if name != "metadata.json"} == {
        name: data for name, data in before.items() if name != "metadata.json"
    }
    assert (tokens / "part-000000-view0-0001.parquet").stat().st_mtime_ns == stamps["part-000000-view0-0001.parquet"]


def test_leftovers_of_another_tokenizer_or_of_other_images_are_refused(tokens, tokenizer, shards, tmp_path):
    other = untrained_tokenizer(smoke(shards), tmp_path / "b", 1)
    with pytest.raises(DataError, match="of tokenizer .*, not of .*: remove"):
        build_tokens(smoke(shards), other, str(tokens))
    with pytest.raises(DataError, match="of other images or settings"):
        build_tokens(smoke(shards, "data.unit_images=8"), tokenizer, str(tokens))
    with pytest.raises(ConfigError, match="change the tokenizer section"):
        build_tokens(smoke(shards, "tokenizer.codebook_size=64"), tokenizer, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="where 2 belong"):  # views that no one asked for
        build_tokens(smoke(shards, "data.views=1"), tokenizer, str(tokens))


def test_a_full_disk_ends_the_job_and_leaves_whole_parts_alone(tokens, tokenizer, shards, tmp_path):
    """A job goes on from them as after any restart: the test of restarts shows it."""
    with small_disk(tmp_path / "disk", 24):
        folder = tmp_path / "disk" / "tokens"
        with pytest.raises(DiskFull, match=f"no space left to write {folder}/part-"):
            build_tokens(smoke(shards), tokenizer, str(folder))
        there = files(folder)
        assert 0 < len(there) < len(files(tokens)) and all(files(tokens)[name] == there[name] for name in there)


def test_images_of_which_none_can_be_read_are_an_error_with_the_first_reason(ray_cluster, shards, tokenizer, tmp_path):
    with pytest.raises(DataError, match="no image could be read.*not an image"):
        build_tokens(smoke(shards, f"data.train={shards}/b.tar"), tokenizer, str(tmp_path / "out"))
    assert not (tmp_path / "out" / "metadata.json").exists()


def test_features_for_representation_alignment_stand_beside_the_tokens(ray_cluster, shards, tokenizer, tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    from nvg.frozen.dinov2 import load_dinov2

    torch.manual_seed(0)
    shape = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(Dinov2Config(**shape)).save_pretrained(tmp_path / "dino")
    repa = [f"repa.weights={tmp_path}/dino", "repa.feature_width=8", "repa.block=1"]
    config = smoke(shards, *repa, "data.views=1")
    build_tokens(config, tokenizer, str(tmp_path / "out"))
    batch = next(token_batches(str(tmp_path / "out"), epoch=0, batch_size=22, seed=0, shuffle_rows=64))
    assert batch["features"].shape == (22, 16, 8) and batch["features"].dtype == torch.float16
    source = open_source(config.data, "train")
    images, ids, *_ = read_view(source, source.units[0], config.data, 0, config.seed)
    expected = load_dinov2(f"{tmp_path}/dino")(to_float(images[:1]), 4)[0]
    first = next(r for r in range(22) if torch.allclose(batch["features"][r].float(), expected, atol=1e-2))
    table = read_part(part_files(str(tmp_path / "out"))[0, 0][0])
    codes = torch.from_numpy(to_arrays(table)["codes"][table["image_id"].to_pylist().index(ids[0])])
    assert torch.equal(batch["codes"][first], codes)
    stream = {"epoch": 0, "batch_size": 6, "seed": 0, "shuffle_rows": 8}
    alone = list(token_batches(str(tmp_path / "out"), **stream))
    assert len(alone) == 3
    for workers in (2, 3):  # each fetches the features of its own rows; tests/data/test_features.py has the rest
        rows = [slice(6 * rank // workers, 6 * (rank + 1) // workers) for rank in range(workers)]
        shares = [list(token_batches(str(tmp_path / "out"), rows=own, skip=1, **stream)) for own in rows]
        for batch, *parts in zip(alone[1:], *shares, strict=True):
            assert all(torch.equal(torch.cat([part[name] for part in parts]), batch[name]) for name in batch)


def test_a_stream_of_images_reads_large_shards_in_pieces_and_passes_over_broken_units(ray_cluster, shards):
    config = smoke(shards)
    source = open_source(config.data, "train")
    stream = image_batches(config, source, epoch=0, rank=0, world=1, batch_size=11, seed=0, random_views=False)
    batches = [next(stream) for _ in range(4)]  # two times the data
    assert all(batch["images"].shape == (11, 16, 16, 3) for batch in batches)
    with pytest.raises(StopIteration):
        next(stream)
    for half in (batches[:2], batches[2:]):  # no image comes twice before all came once
        assert len({image.numpy().tobytes() for batch in half for image in batch["images"]}) == 22
    images, _, _, _ = read_view(source, source.units[0], config.data, 0, config.seed)
    whole = {image.tobytes() for image in images}
    assert {image.numpy().tobytes() for batch in batches for image in batch["images"]} == whole


def test_readers_wait_for_a_slow_encoder_instead_of_filling_the_object_store(ray_cluster, tmp_path, monkeypatch):
    """15 pieces of 20 MB, and an encoder of 0.2 s a piece: without backpressure all would be read in a few seconds."""
    import pipelines.build_tokens as job

    small = encode(pixels(0))
    write_tar(tmp_path / "a.tar", [item for n in range(300) for item in ((f"{n}.cls", b"1"), (f"{n}.png", small))])
    sizes = ["data.image_size=256", "tokenizer.patch=32", "data.unit_images=100", "data.views=5"]
    config = smoke(tmp_path / "a.tar", *sizes)
    marks = tmp_path / "marks"
    marks.mkdir()

    def mark(kind):
        (marks / f"{time.time_ns()}-{kind}").touch()

    class MarkedRead(job.Read):
        def __call__(self, row):
            for piece in super().__call__(row):
                mark("read")
                yield piece

    class SlowEncode(Encode):
        def __call__(self, row):
            time.sleep(0.2)
            mark("encoded")
            return super().__call__(row)

    monkeypatch.setattr(job, "Read", MarkedRead)
    monkeypatch.setattr(job, "Encode", SlowEncode)
    about = build_tokens(config, untrained_tokenizer(config, tmp_path / "tokenizer", 0), str(tmp_path / "out"))
    assert about["parts"] == 15 and about["rows"] == 1500
    steps = [1 if path.name.endswith("read") else -1 for path in sorted(marks.iterdir())]
    held = np.cumsum(steps)
    assert len(steps) == 30 and 2 <= held.max() <= 9, held


def test_pieces_that_the_object_store_cannot_hold_are_said_before_anything_is_read(ray_cluster, shards, capsys):
    for images, heard in ((512, ""), (100_000, "data.unit_images=")):
        config = smoke(shards, f"data.unit_images={images}", "data.image_size=64")
        warn_of_small_store(config, 2 * images * 64 * 64 * 3)
        said = capsys.readouterr().out
        assert bool(said) == bool(heard) and heard in said
    assert "cluster.object_store_gb" in said and "set data.unit_images=5" in said


def test_the_benchmark_of_reading_gives_its_row(ray_cluster):
    from benchmarks import reading, report

    rows = reading.run("smoke")
    assert report.table(rows).count("\n") >= 2 and all(math.isfinite(value) for value in rows[0].values.values())
    assert {"parts, rows/s", "stream, rows/s", "writing, rows/s"} <= rows[0].values.keys()
