"""Features are fetched for a worker's own rows alone, and its batches are those of a stream that reads everything.

Ray Data's part of the stream, tasks that read parts in order, is a loop here; tests/cluster has the real one.
"""

import json
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
import torch

from nvg import storage
from nvg.data import features, stream
from nvg.data.features import CHECKSUM, features_file, read_features, with_features
from nvg.data.stream import shuffled, token_batches, token_reader
from nvg.data.tokens import TokenFormat, finish, part_files, part_name, read_footers, read_part, to_arrays, write_part
from nvg.errors import DataError
from nvg.training.loop import Place
from tests.support import s3

FORM = TokenFormat("mark", 2, 4, 300, ["a", "b"], feature_width=3)
SHAPE = (4, 3)
ROWS = (5, 9, 0, 7, 3, 8)  # of the parts of a view
BATCH, SHUFFLE, SLICES = 6, 16, 6


def columns(unit, view, count):
    rng = np.random.default_rng([unit, view])
    return {
        "image_id": [f"{unit}-{n}" for n in range(count)],
        "label": rng.integers(0, 2, count),
        "content": rng.integers(0, 300, (count, 7)).astype(np.uint16),
        "structure": rng.integers(0, 4, (count, 4)).astype(np.uint16),
        "features": rng.standard_normal((count, 12)).astype(np.float16),
    }


def write_set(folder):
    """A finished token set of two views; returns its folder."""
    places = [(unit, view) for unit in range(len(ROWS)) for view in range(2)]
    for unit, view in places:
        write_part(folder, FORM, part_name(unit, view), view, columns(unit, view, ROWS[unit]), [])
    finish(folder, FORM, set(places), {"views": 2})
    return folder


@pytest.fixture(scope="module")
def s3_port():
    with s3.server() as port, s3.environment(port):
        yield port


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def folder(request, tmp_path):
    if request.param == "local":
        yield write_set(str(tmp_path / "tokens"))
        return
    if request.param == "s3":
        request.getfixturevalue("s3_port")
    url = f"s3://nvg-test/{tmp_path.name}" if request.param == "s3" else f"memory://{tmp_path.name}/tokens"
    yield write_set(url)
    storage.remove(url)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Items read one after the other, as tables of `rows` rows: what `_in_order` has Ray Data do."""

    def in_order(items, read, rows, reader):
        table = pa.concat_tables(read({key: [value] for key, value in item.items()}) for item in items)
        return (table.slice(first, rows) for first in range(0, table.num_rows, rows))

    monkeypatch.setattr(stream, "_in_order", in_order)


def whole_rows(folder, epoch, seed=3):
    """The stream as it was when features were a column: every worker mixes whole rows, and keeps its own. Slow."""
    files = [path for (_, view), paths in sorted(part_files(folder).items()) if view == epoch % 2 for path in paths]
    order = np.random.default_rng([seed, epoch]).permutation(len(files))
    parts = []
    for index in order:
        table = read_part(files[index])
        arrays = {name: values for name, values in to_arrays(table).items() if name != CHECKSUM}
        unit, view = int(files[index].split("part-")[1][:6]), epoch % 2
        arrays["features"] = columns(unit, view, table.num_rows)["features"]
        parts.append(arrays)
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    buffer = max(BATCH, SHUFFLE // 2)
    chunks = (
        {name: values[first : first + buffer] for name, values in rows.items()} for first in range(0, sum(ROWS), buffer)
    )
    for batch in shuffled(chunks, BATCH, buffer, [seed, epoch]):
        batch["features"] = batch["features"].reshape(-1, *SHAPE)
        yield {name: torch.from_numpy(values) for name, values in batch.items()}


def share(rank, world):
    """The rows of each batch that are a worker's, as nvg/training/jobs.py has them."""
    slices, size = Place(rank=rank, world=world).share(SLICES), BATCH // SLICES
    return slice(slices.start * size, slices.stop * size)


def own_batches(folder, rows, epoch=0, skip=0):
    settings = {"epoch": epoch, "batch_size": BATCH, "seed": 3, "shuffle_rows": SHUFFLE}
    return list(token_batches(folder, rows=rows, skip=skip, **settings))


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert sorted(one) == sorted(other) == ["codes", "content", "features", "labels"]
        for name in one:
            assert one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_workers_have_the_rows_of_a_stream_that_reads_everything(folder, world):
    for epoch in (0, 3):  # of two views
        expected = list(whole_rows(folder, epoch))
        for rank in range(world):
            rows = share(rank, world)
            own = [{name: values[rows] for name, values in batch.items()} for batch in expected]
            assert_same(own_batches(folder, rows, epoch), own)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_stream_goes_on_in_the_middle_of_an_epoch_with_the_same_batches(tmp_path, world):
    folder = write_set(str(tmp_path))
    for rank in range(world):
        whole = own_batches(folder, share(rank, world))
        for skip in range(len(whole)):
            assert_same(own_batches(folder, share(rank, world), skip=skip), whole[skip:])


def test_a_worker_reads_the_features_of_its_own_rows_once_and_of_no_skipped_batch(tmp_path, monkeypatch):
    folder, read = write_set(str(tmp_path)), []
    read_range = storage.read_range

    def recorded(path, start, length):
        read.append((path, start, length))
        return read_range(path, start, length)

    monkeypatch.setattr(storage, "read_range", recorded)
    batches = [own_batches(folder, share(rank, 3), skip=2) for rank in range(3)]
    rows = sum(len(batch["labels"]) for own in batches for batch in own)
    assert rows == (sum(ROWS) // BATCH - 2) * BATCH
    assert len(read) == len(set(read)) == rows and {length for *_, length in read} == {2 * 4 * 3}


@pytest.mark.slow
def test_ranged_requests_to_a_store_fetch_no_more_than_the_rows(s3_port):
    folder = write_set("s3://nvg-test/counted")
    with s3.Way(s3_port) as way:
        sizes = []

        def measured(handler, reply, data):
            if handler.command == "GET" and handler.path.endswith(".npy"):
                sizes.append(len(data))
            return False

        way.faults = [measured] * 1000
        with s3.environment(way.own_port):
            batches = own_batches(folder, share(1, 3))
    assert sizes == [2 * 4 * 3] * sum(len(batch["labels"]) for batch in batches)


@pytest.mark.slow
def test_a_store_that_fails_once_is_asked_again(s3_port):
    folder = write_set("s3://nvg-test/failing")
    expected = own_batches(folder, share(0, 1))

    def failing_once(failed):
        def fault(handler, reply, data):
            if handler.path.endswith(".npy") and handler.path not in failed:
                failed.add(handler.path)
                return s3.status(503, "SlowDown")(handler, reply, data)
            return False

        return fault

    with s3.Way(s3_port) as way:
        way.faults = [failing_once(set())] * 1000
        with s3.environment(way.own_port):
            assert_same(own_batches(folder, share(0, 1)), expected)


def rows_of(part, count):
    """A batch of the first rows of a part."""
    return {"part": np.full(count, 0), "row": np.arange(count), CHECKSUM: to_arrays(read_part(part))[CHECKSUM][:count]}


def test_the_next_batches_are_fetched_ahead_and_no_more_than_the_bound(tmp_path, monkeypatch):
    part = write_set(str(tmp_path)) + "/" + part_name(1, 0)
    rows, asked = rows_of(part, 9), []
    started = threading.Semaphore(0)

    def batches():
        for number in range(9):
            asked.append(number)
            yield {name: values[number : number + 1] for name, values in rows.items()}

    read = features.read_features
    monkeypatch.setattr(features, "read_features", lambda *arguments: (started.release(), read(*arguments))[1])
    for most_bytes, ahead in ((2**28, features.AHEAD_BATCHES), (3 * 24, 3), (1, 1)):
        monkeypatch.setattr(features, "AHEAD_BYTES", most_bytes)
        asked.clear()
        fetched = with_features(batches(), [part], SHAPE)
        next(fetched)
        assert asked == list(range(ahead + 1))
        for _ in asked:  # they are on their way, though nobody asks for them
            assert started.acquire(timeout=30)
        fetched.close()


def test_a_stream_that_is_closed_leaves_no_thread(tmp_path):
    part = write_set(str(tmp_path)) + "/" + part_name(1, 0)
    fetched = with_features([rows_of(part, 9)] * 3, [part], SHAPE)
    next(fetched)
    fetched.close()
    end = time.monotonic() + 30
    while any(thread.name.startswith("features") for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_file_of_features_is_one_that_numpy_reads(tmp_path):
    for count in (0, 1, 12_345):
        values = np.random.default_rng(0).standard_normal((count, 12)).astype(np.float16)
        write_part(str(tmp_path), FORM, part_name(0, 0), 0, columns(0, 0, count) | {"features": values}, [])
        path = features_file(str(tmp_path / part_name(0, 0)))
        assert np.array_equal(np.load(path, mmap_mode="r"), values.reshape(count, *SHAPE))


def cut(path, part):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path, part):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def of_other_rows(path, part):
    write_part(str(path.parent.parent / "b"), FORM, part.name, 0, columns(7, 0, 5), [])
    path.write_bytes((path.parent.parent / "b" / path.name).read_bytes())


@pytest.mark.parametrize("harm", [cut, flip, of_other_rows])
def test_features_that_are_not_those_of_their_part_are_refused_by_name(tmp_path, harm):
    write_part(str(tmp_path / "a"), FORM, part_name(0, 0), 0, columns(0, 0, 5), [])
    part = tmp_path / "a" / part_name(0, 0)
    path = tmp_path / "a" / "part-000000-view0.npy"
    harm(path, part)
    message = f"{path} is damaged: its rows are not those of {part}: remove both and run build_tokens again"
    with pytest.raises(DataError, match=message):
        list(with_features([rows_of(str(part), 5)], [str(part)], SHAPE))
    path.unlink()
    with pytest.raises(DataError, match=f"{path} is missing: remove {part} and run build_tokens again"):
        read_features(str(part), 0, np.zeros(1, np.uint32), SHAPE)


def test_an_error_comes_at_its_batch(tmp_path):
    folder = write_set(str(tmp_path))
    part = f"{folder}/{part_name(1, 0)}"
    good, bad = rows_of(part, 3), rows_of(part, 3)
    bad[CHECKSUM] = bad[CHECKSUM] + 1
    fetched = with_features([good, good, bad, good], [part], SHAPE)
    assert len(next(fetched)["features"]) == len(next(fetched)["features"]) == 3
    with pytest.raises(DataError, match="is damaged"):
        next(fetched)


def test_a_part_of_the_time_when_features_were_a_column_is_refused(tmp_path):
    import pyarrow.parquet as pq

    write_part(str(tmp_path), FORM, part_name(0, 0), 0, columns(0, 0, 5), [])
    path = str(tmp_path / part_name(0, 0))
    table = read_part(path)
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(60, np.float16)), 12)
    pq.write_table(table.drop_columns([CHECKSUM]).append_column("features", column), path)
    with pytest.raises(DataError, match="has not the columns that its metadata names.*run build_tokens again"):
        token_reader("mark")({"first": [0], "paths": [json.dumps([path])]})
    with pytest.raises(DataError, match=f"is of other images or settings: remove {tmp_path}"):
        read_footers([path], FORM, str(tmp_path))
