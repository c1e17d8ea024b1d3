"""Shards that are not as they should be: every image is a record or one row of the quarantine, whose reason helps."""

import io
import tarfile

import pytest

from nvg.data import BrokenImage, open_source
from nvg.data.sources.tar import read_members
from tests.support.pictures import config, encode, pixels, write_tar

PNG = [encode(pixels(number)) for number in range(4)]


def read(tmp_path, members, **changes):
    """(id without the shard, label or reason) of all that a shard gives; its count is checked."""
    path = write_tar(tmp_path / "a.tar", members)
    source = open_source(config(source="webdataset", train=path, **changes), "train")
    found = [record for unit in source.units for record in source.reader().read(unit)]
    assert source.count() == len(found) and len({record.image_id for record in found}) == len(found)
    return {record.image_id.removeprefix("a.tar/"): getattr(record, "reason", None) or record.label for record in found}


def test_two_images_of_one_key_are_two_rows_that_say_where_a_key_ends(tmp_path):
    found = read(tmp_path, [("p.1.png", PNG[0]), ("p.2.png", PNG[1]), ("p.cls", b"1")])
    assert found.keys() == {"p.1.png", "p.2.png"}
    for reason in found.values():
        assert "a key ends at the first dot" in reason and "'p' has 2 images (.1.png, .2.png, .cls)" in reason


def test_keys_with_dots_are_rows_that_say_where_a_key_ends(tmp_path):
    found = read(
        tmp_path, [(f"x_1.{n}.{kind}", data) for n in (0, 5) for kind, data in (("png", PNG[n % 4]), ("cls", b"1"))]
    )
    assert found.keys() == {"x_1.0.png", "x_1.5.png"}
    assert all("a key ends at the first dot" in reason for reason in found.values())


def test_a_single_image_whose_label_has_another_dot_is_told_why(tmp_path):
    (reason,) = read(tmp_path, [("x_1.0.png", PNG[0]), ("x_1.0.cls", b"1")]).values()
    assert "neither a .cls member" in reason and "a key ends at the first dot" in reason and ".0.cls" in reason


def test_a_mask_beside_an_image_is_never_taken_for_it(tmp_path):
    found = read(
        tmp_path, [("p.seg.png", PNG[0]), ("p.jpg", encode(pixels(1), "JPEG")), ("p.cls", b"1"), ("p.txt", b"a")]
    )
    assert found["p"] == 1 and "first dot" in found["p.seg.png"] and len(found) == 2


def test_two_plain_images_of_one_key_are_both_rows(tmp_path):
    found = read(tmp_path, [("p.png", PNG[0]), ("p.jpg", encode(pixels(1), "JPEG")), ("p.cls", b"1")])
    assert found.keys() == {"p.png", "p.jpg"} and not {1} & set(found.values())


def test_a_member_that_is_there_twice_is_two_rows(tmp_path):
    found = read(tmp_path, [("p.png", PNG[0]), ("p.png", PNG[1]), ("p.cls", b"1"), ("q.png", PNG[2]), ("q.cls", b"2")])
    assert found.keys() == {"p.png", "p.png#2", "q"} and found["q"] == 2


@pytest.mark.parametrize(("second", "outcome"), [(b"1", 1), (b"1\n", "differ"), (b"2", "differ")])
def test_a_label_that_is_there_twice_is_one_label_or_none(second, outcome, tmp_path):
    (found,) = read(tmp_path, [("p.png", PNG[0]), ("p.cls", b"1"), ("p.cls", second)]).values()
    assert found == outcome or outcome == "differ" and "2 .cls members that differ" in found


UNSORTED = {
    "images first": ["a.png", "b.png", "a.cls", "b.cls"],
    "labels first": ["a.cls", "b.cls", "a.png", "b.png"],
    "crossed": ["a.png", "b.cls", "a.cls", "b.png"],
    "json": ["a.png", "b.png", "a.json", "b.json"],
    "in folders": ["img/a.png", "img/b.png", "img/a.cls", "img/b.cls"],
}


@pytest.mark.parametrize("order", UNSORTED)
def test_members_that_do_not_stand_together_are_one_row_an_image_and_the_way_to_sort(order, tmp_path):
    contents = {"cls": b"1", "json": b'{"label": 1}'}
    members = [(name, contents.get(name.rpartition(".")[2]) or PNG["a" in name]) for name in UNSORTED[order]]
    found = read(tmp_path, members)
    assert {key.rpartition("/")[2] for key in found} == {"a", "b"}
    for reason in found.values():
        assert "stands elsewhere in the shard" in reason and "tar --sort=name" in reason


def test_a_key_that_comes_again_is_one_record_and_rows(tmp_path):
    """An archive that was added to (tar -r), or two archives one after the other."""
    sample = [("a.png", PNG[0]), ("a.cls", b"1"), ("b.png", PNG[1]), ("b.cls", b"2")]
    found = read(tmp_path, [*sample, *sample, *sample])
    assert found.pop("a") == 1 and found.pop("b") == 2
    assert found.keys() == {"a#2", "a#3", "b#2", "b#3"}
    assert all("stands in the shard before" in reason for reason in found.values())


def test_an_image_alone_and_a_label_alone_are_rows(tmp_path):
    found = read(tmp_path, [("a.png", PNG[0]), ("b.cls", b"1"), ("c.png", PNG[1]), ("c.cls", b"2")])
    assert found["c"] == 2 and len(found) == 3
    assert found["a"].startswith("no class: neither") and "elsewhere" not in found["a"]
    assert found["b"] == "no image member among ['.cls']"


def test_dots_in_folders_end_no_key(tmp_path):
    names = ("v1.0/a", "v1.1/a", "./v.2/x.y/a", "v1/0.a")
    found = read(tmp_path, [(f"{name}.{kind}", d) for name in names for kind, d in (("png", PNG[0]), ("cls", b"1"))])
    assert {name: found[name] for name in names[:3]} == dict.fromkeys(names[:3], 1) and len(found) == 4


@pytest.mark.parametrize("kind", ["heic", "jxl"])
def test_a_picture_that_no_decoder_reads_is_an_image_of_its_key(kind, tmp_path):
    assert read(tmp_path, [(f"a.{kind}", b"ftypheic"), ("a.cls", b"1")]) == {"a": 1}  # and its bytes are broken


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        (b'{"label": 2}', 2),
        (b'{"label": 2.0}', 2),
        (b'{"label": "2"}', 2),
        (b'{"cls": 2}', 2),
        (b'{"label": 1.9}', "1.9 is no whole number"),
        (b'{"label": null}', "None is no whole number"),
        (b'{"label": [1]}', "is no whole number"),
        (b'{"label": "dog"}', "'dog' is no whole number"),
        (b'{"label": 3}', "class 3 is none of 0 ... 2"),
        (b"[1]", "neither a .cls member"),
        (b"{", "no class"),
    ],
)
def test_labels_in_json_are_whole_numbers(content, outcome, tmp_path):
    members = [("a.png", PNG[0]), ("a.json", content), ("z.png", PNG[1]), ("z.cls", b"0")]
    found = read(tmp_path, members)["a"]
    assert found == outcome or isinstance(outcome, str) and outcome in found


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_in_an_archive_is_a_row(kind, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in [("a.png", PNG[0]), ("a.cls", b"1"), ("b.png", None), ("b.cls", b"1"), ("c.png", PNG[1])]:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = kind, "a.png"
            else:
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data or b""))
    source = open_source(config(source="webdataset", train=str(tmp_path / "a.tar")), "train")
    first, link, _ = source.read(source.units[0])
    assert first.label == 1 and isinstance(link, BrokenImage) and link.image_id == "a.tar/b"
    assert "link to a.png" in link.reason and "--hard-dereference" in link.reason
    assert [name for name, _ in read_members(str(tmp_path / "a.tar"))] == ["a.png", "a.cls", "b.png", "b.cls", "c.png"]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_cut_shard_gives_its_whole_images_and_a_row_for_the_rest(cut, tmp_path):
    members = [(f"{n}.{kind}", data) for n in range(3) for kind, data in (("png", PNG[n]), ("cls", b"1"))]
    path = tmp_path / "a.tar"
    write_tar(path, members)
    with tarfile.open(path) as archive:
        end = archive.getmembers()[-1].offset_data + 512
    path.write_bytes(path.read_bytes()[: end * cut // 12])
    source = open_source(config(source="webdataset", train=str(path)), "train")
    *images, last = source.read(source.units[0])
    assert isinstance(last, BrokenImage) and last.path == str(path) and "cannot be read on" in last.reason
    assert [image.image_id for image in images] == [f"a.tar/{number}" for number in range(len(images))]
    assert not any(isinstance(image, BrokenImage) for image in images)
