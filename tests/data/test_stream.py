"""The order of rows, and the tokens' Parquet, without Ray (tests/cluster has the rest)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvg.data import BrokenImage, open_source
from nvg.data.stream import parts_together, read_pieces, shuffled
from nvg.data.tokens import TokenFormat, finish, part_files, part_name, read_footers, read_part, to_arrays, write_part
from nvg.errors import DataError
from tests.support.pictures import config, encode, jpeg_of, pixels, write_folder

FORM = TokenFormat("mark", last_stage=2, positions=4, codebook_size=300, class_names=["a", "b"])


def chunks_of(sizes):
    starts = np.cumsum([0, *sizes])
    return [{"labels": np.arange(a, b)} for a, b in zip(starts[:-1], starts[1:], strict=True)]


def drain(batches):
    """(what it yields, what it returns)"""
    given = []
    while True:
        try:
            given.append(next(batches))
        except StopIteration as end:
            return given, end.value


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), max_size=6), st.integers(1, 7), st.integers(0, 40), st.integers(0, 3))
def test_mixing_loses_no_row_and_doubles_none(sizes, batch_size, keep, seed):
    batches, rest = drain(shuffled(iter(chunks_of(sizes)), batch_size, keep, [seed]))
    assert all(len(batch["labels"]) == batch_size for batch in batches)
    left = rest["labels"].tolist() if rest is not None else []
    assert len(left) < batch_size
    assert sorted(sum((batch["labels"].tolist() for batch in batches), left)) == list(range(sum(sizes)))
    again, _ = drain(shuffled(iter(chunks_of(sizes)), batch_size, keep, [seed]))
    assert all(np.array_equal(a["labels"], b["labels"]) for a, b in zip(batches, again, strict=True))


def test_pieces_hold_at_most_unit_images_and_the_last_says_so(tmp_path):
    settings = config(train=write_folder(tmp_path, each=3), unit_images=9)
    source = open_source(settings, "train")
    for size, counts in ((4, [4, 4, 1]), (9, [9]), (3, [3, 3, 3])):
        settings.unit_images = size
        found = list(read_pieces(source.reader(), source.units[0], settings, 0, 0))
        assert [len(piece.ids) for piece in found] == counts
        assert [piece.number for piece in found] == list(range(len(counts)))
        assert [piece.last for piece in found] == [False] * (len(counts) - 1) + [True]


def test_a_unit_without_a_readable_image_is_one_empty_piece(tmp_path):
    for name in ("ant", "bee", "cow"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(encode(pixels(0))[:50])
    source = open_source(config(train=str(tmp_path)), "train")
    (piece,) = read_pieces(source.reader(), source.units[0], config(), 0, 0)
    assert piece.images.shape == (0, 16, 16, 3) and piece.last and len(piece.broken) == 3


def test_odd_files_among_good_ones_are_read_by_what_they_are_or_named_with_a_reason(tmp_path):
    folder = tmp_path / "n01440764"
    folder.mkdir()
    jpeg = encode(pixels(0), "JPEG")
    files = {"good": jpeg, "png_inside": encode(pixels(1)), "zero": b"", "cut": jpeg[:-200], "page": b"<html>"}
    for name, data in (files | {"huge": jpeg_of(60000, 60000), "thin": encode(pixels(2, (1, 5000)), "JPEG")}).items():
        (folder / f"{name}.JPEG").write_bytes(data)
    settings = config(source="ilsvrc", train=str(tmp_path), num_classes=1, unit_images=9, views=10)
    source = open_source(settings, "train")
    for view in (0, 9):
        (piece,) = read_pieces(source.reader(), source.units[0], settings, view, 0)
        assert {item.split("/")[1] for item in piece.ids} == {"good", "png_inside", "thin"}
        assert {item.image_id.split("/")[1]: item.reason.split(":")[0] for item in piece.broken} == {
            "zero": "not an image",
            "cut": "OSError",
            "page": "not an image",
            "huge": "too large",
        }


def columns(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image_id": [f"{n}.png" for n in range(count)],
        "label": [n % 2 for n in range(count)],
        "content": rng.integers(0, 300, (count, 7)),
        "structure": rng.integers(0, 4, (count, 4)),
    }


def test_a_part_is_read_as_it_was_written_and_is_the_same_bytes_each_time(tmp_path):
    for folder in ("one", "two"):
        write_part(str(tmp_path / folder), FORM, part_name(3, 1), 1, columns(5), [BrokenImage("x", "y", "z")])
    (path,) = part_files(str(tmp_path / "one"))[3, 1]
    assert (tmp_path / "one" / "part-000003-view1.parquet").read_bytes() == (
        tmp_path / "two" / "part-000003-view1.parquet"
    ).read_bytes()
    table = read_part(path, "mark")
    assert [str(field.type) for field in table.schema] == [
        "string",
        "int8",
        "int16",
        "fixed_size_list<element: uint16>[7]",
        "fixed_size_list<element: uint8>[4]",
    ]
    arrays = to_arrays(table)
    assert np.array_equal(arrays["content"], columns(5)["content"])
    assert np.array_equal(arrays["codes"], columns(5)["structure"]) and arrays["labels"].tolist() == [0, 1, 0, 1, 0]
    with pytest.raises(DataError, match="tokenizer mark, not of other: run build_tokens"):
        read_part(path, "other")


@pytest.mark.parametrize("count", [0, 3])
def test_an_empty_part_is_a_part(count, tmp_path):
    empty = columns(0) | {"content": np.zeros((0, 7), np.uint16), "structure": np.zeros((0, 4), np.uint16)}
    write_part(str(tmp_path), FORM, part_name(0, 0), 0, empty, [BrokenImage("x", "y", "z")])
    write_part(str(tmp_path), FORM, part_name(1, 0), 0, columns(count), [BrokenImage("x", "y", "z")])
    if not count:
        with pytest.raises(DataError, match="no image could be read.*y: z"):
            finish(str(tmp_path), FORM, {(0, 0), (1, 0)}, {})
        assert not (tmp_path / "metadata.json").exists()
        return
    about = finish(str(tmp_path), FORM, {(0, 0), (1, 0)}, {"views": 1})
    assert (about["images"], about["quarantined"], about["parts"], about["views"]) == (3, 1, 2, 1)
    with pytest.raises(DataError, match="holds 2 parts where 3 belong"):
        finish(str(tmp_path), FORM, {(0, 0), (1, 0), (2, 0)}, {})


def test_a_unit_with_a_missing_piece_is_not_there(tmp_path):
    names = [part_name(0, 0, piece, piece == 2) for piece in range(3)]
    for name in names:
        write_part(str(tmp_path), FORM, name, 0, columns(2), [])
    assert [path.rsplit("/", 1)[-1] for path in part_files(str(tmp_path))[0, 0]] == names
    for missing in names:
        data = (tmp_path / missing).read_bytes()
        (tmp_path / missing).unlink()
        assert part_files(str(tmp_path)) == {}
        (tmp_path / missing).write_bytes(data)


def test_a_damaged_or_foreign_part_is_named(tmp_path):
    write_part(str(tmp_path), FORM, part_name(0, 0), 0, columns(2), [])
    path = str(tmp_path / part_name(0, 0))
    (tmp_path / part_name(0, 0)).write_bytes((tmp_path / part_name(0, 0)).read_bytes()[:-30])
    for read in (lambda: read_part(path), lambda: read_footers([path], FORM, str(tmp_path))):
        with pytest.raises(DataError, match="part-000000-view0.parquet is damaged"):
            read()


def test_a_task_reads_many_small_parts_and_few_large_ones():
    about = {"rows": 60_000, "parts": 60, "positions": 16}
    assert parts_together(about, 8192) == 8
    assert parts_together(about, 100) == 1  # never less than a part
    # 1.3 kB a row at L = 256: 32 MiB are 26,214 rows. Features are not read with them.
    for width in (None, 768):
        assert parts_together(about | {"positions": 256, "feature_width": width}, 2**20) == 26
