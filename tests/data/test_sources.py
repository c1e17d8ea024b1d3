"""Every image source by one set of laws, and each one's own layout and errors."""

import gzip
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nvg
from nvg.data import BrokenImage, open_source
from nvg.data.sources import ilsvrc as ilsvrc_source
from nvg.errors import DataError, StorageError
from tests.support.pictures import config, encode, pixels, write_folder, write_idx, write_parquet, write_tar


def folder(tmp_path):
    return config(train=write_folder(tmp_path / "images"))


def ilsvrc(tmp_path):
    root = tmp_path / "train"
    write_folder(root, ("n01440764", "n01443537", "n01484850"))
    (tmp_path / "LOC_synset_mapping.txt").write_text(
        "n01440764 tench, Tinca tinca\nn01443537 goldfish\nn01484850 great white shark\n"
    )
    return config(source="ilsvrc", train=str(root))


def parquet(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(2):
        write_parquet(tmp_path / "data" / f"train-0000{number}.parquet", names=["ant", "bee", "cow"])
    return config(source="parquet", train=str(tmp_path / "data" / "train-*.parquet"))


def webdataset(tmp_path):
    for shard in range(2):
        members = []
        for number in range(5):
            members += [
                (f"{number:04d}.jpg", encode(pixels(number), "JPEG")),
                (f"{number:04d}.cls", b"%d" % (number % 3)),
            ]
        write_tar(tmp_path / f"train-{shard:02d}.tar", members)
    return config(source="webdataset", train=str(tmp_path / "train-*.tar"))


def idx(tmp_path):
    images = np.stack([pixels(number)[:, :, 0] for number in range(10)])
    return config(
        source="idx", train=write_idx(tmp_path / "idx", images, [number % 3 for number in range(10)]), channels=1
    )


LAYOUTS = [folder, ilsvrc, parquet, webdataset, idx]


def records(source):
    return [record for unit in source.units for record in source.reader().read(unit)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_image_comes_once_with_its_label_in_the_same_order_each_time(layout, tmp_path):
    settings = layout(tmp_path)
    source = open_source(settings, "train")
    found = records(source)
    assert not any(isinstance(record, BrokenImage) for record in found)
    assert len(found) == source.count() and len({record.image_id for record in found}) == len(found)
    assert {record.label for record in found} == {0, 1, 2} and len(source.class_names) == 3
    again = open_source(settings, "train")
    assert [record.image_id for record in records(again)] == [record.image_id for record in found]
    assert again.fingerprint() == source.fingerprint()
    assert all(len(list(source.read(unit))) <= 5 for unit in source.units)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_wrong_number_of_classes_is_refused_with_the_right_one(layout, tmp_path):
    settings = layout(tmp_path)
    settings.num_classes = 4
    if layout is webdataset:  # its shards do not tell how many classes there are: labels are checked on reading
        assert not any(isinstance(record, BrokenImage) for record in records(open_source(settings, "train")))
        settings.num_classes = 2
        broken = [record for record in records(open_source(settings, "train")) if isinstance(record, BrokenImage)]
        assert len(broken) == 2 and "class 2 is none of 0 ... 1" in broken[0].reason
        return
    if layout is idx or layout is parquet:
        settings.num_classes = 2
    with pytest.raises(DataError, match="set data.num_classes=3"):
        open_source(settings, "train")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_set_of_images_has_another_fingerprint(layout, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = layout(tmp_path / "one")
    second = layout(tmp_path / "two")
    assert open_source(first, "train").fingerprint() == open_source(second, "train").fingerprint()
    for path in (tmp_path / "two").rglob("*"):
        if path.suffix in (".png", ".parquet", ".tar"):
            path.unlink()
            break
    else:
        write_idx(tmp_path / "two" / "idx", np.zeros((3, 20, 24), np.uint8), [0, 1, 2])
    assert open_source(first, "train").fingerprint() != open_source(second, "train").fingerprint()


def test_a_folder_is_read_in_mixed_class_order(tmp_path):
    source = open_source(config(train=write_folder(tmp_path, each=40), unit_images=30), "train")
    for unit in source.units:
        assert len({label for _, label in unit["files"]}) == 3


def test_an_image_outside_the_class_folders_is_refused(tmp_path):
    write_folder(tmp_path / "images")
    (tmp_path / "images" / "loose.png").write_bytes(encode(pixels(0)))
    with pytest.raises(DataError, match="loose.png lies in no class folder"):
        open_source(config(train=str(tmp_path / "images")), "train")


@pytest.mark.parametrize("source", ["folder", "ilsvrc"])
def test_an_empty_folder_is_an_error_that_names_the_key(source, tmp_path):
    with pytest.raises(DataError, match="data.train=.* holds no images"):
        open_source(config(source=source, train=str(tmp_path)), "train")
    with pytest.raises(DataError, match="data.test is not set"):
        open_source(config(source=source, train=str(tmp_path)), "test")


def test_synset_names_come_from_the_mapping_else_from_the_shipped_list_else_from_the_folders(tmp_path):
    settings = ilsvrc(tmp_path)
    assert open_source(settings, "train").class_names == ["tench, Tinca tinca", "goldfish", "great white shark"]
    (tmp_path / "LOC_synset_mapping.txt").unlink()
    (tmp_path / "train" / "n01484850").rename(tmp_path / "train" / "n00004475")  # an organism: no class of ILSVRC 2012
    names = open_source(settings, "train").class_names
    assert names == ["n00004475", "tench, Tinca tinca", "goldfish, Carassius auratus"]


def test_the_thousand_synsets_are_shipped_and_one_that_is_missing_or_wrong_is_named(tmp_path):
    """With the usual numbers of well-known classes, as torchvision, timm and the ADM reference have them."""
    lines = (Path(nvg.__file__).parent / "imagenet_synsets.txt").read_text().splitlines()
    synsets = [line[:9] for line in lines if line.startswith("n")]
    assert len(synsets) == 1000 and synsets == sorted(set(synsets))
    for synset in synsets:
        write_tar(tmp_path / f"{synset}.tar", [])
    settings = config(source="ilsvrc", train=str(tmp_path), num_classes=1000)
    names = open_source(settings, "train").class_names
    assert len(set(names)) == 1000
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 517: "crane (n03126707)", 817: "sports car"}
    assert {label: names[label].split(",")[0] for label in known} == known and names[134] == "crane (n02012849)"
    (tmp_path / "n01443537.tar").rename(tmp_path / "n01443538.tar")
    with pytest.raises(DataError, match="holds n01443538, which is none of the 1000 synsets"):
        open_source(settings, "train")
    (tmp_path / "n01443538.tar").unlink()
    with pytest.raises(DataError, match="no image of 1 of the 1000 classes .n01443537.*data.num_classes=999"):
        open_source(settings, "train")
    settings.test = settings.train  # held-out images may lack a class, and the others keep their numbers
    source = open_source(settings, "test")
    assert source.units[1]["archive"] == "n01484850.tar" and source.units[1]["label"] == 2
    settings.num_classes = 999
    assert open_source(settings, "train").class_names[1].startswith("great white shark")


def test_kaggles_archive_is_read_as_it_unpacks(tmp_path):
    for split in ("train", "val"):
        folder = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / split
        folder.mkdir(parents=True)
        if split == "train":
            write_folder(folder, ("n01440764", "n01443537", "n01484850"))
    (folder / "ILSVRC2012_val_00000001.JPEG").write_bytes(encode(pixels(0), "JPEG"))
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 a\nn01443537 b\nn01484850 c\n")
    table = "ImageId,PredictionString\nILSVRC2012_val_00000001,n01484850 85 1 499 272 n01484850 1 2 3 4 \n"
    (tmp_path / "LOC_val_solution.csv").write_text(table)
    settings = config(source="ilsvrc", train=str(folder.parent / "train"), test=str(folder))
    assert open_source(settings, "train").class_names == ["a", "b", "c"]
    assert [record.label for record in records(open_source(settings, "test"))] == [2]


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"])
def test_an_archive_that_must_be_unpacked_first_is_named(name, tmp_path):
    write_tar(tmp_path / name, [("n01440764.tar", b"")])
    with pytest.raises(DataError, match=f"{name}.*unpacked once"):
        open_source(config(source="ilsvrc", train=str(tmp_path)), "train")


def test_a_flat_validation_folder_is_labelled_by_its_ground_truth(tmp_path):
    settings = ilsvrc(tmp_path)
    (tmp_path / "val").mkdir()
    for number in range(1, 4):
        (tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(encode(pixels(number), "JPEG"))
    settings.test = str(tmp_path / "val")
    with pytest.raises(DataError, match="LOC_val_solution.csv"):
        open_source(settings, "test")
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n2\n")
    truth = {record.image_id[-1]: record.label for record in records(open_source(settings, "test"))}
    assert truth == {"1": 2, "2": 0, "3": 1}
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000001,n01443537 1 2 3 4\n"
        "ILSVRC2012_val_00000002,n01440764 1 2 3 4\nILSVRC2012_val_00000003,n01440764 1 2 3 4\n"
    )
    truth = {record.image_id[-1]: record.label for record in records(open_source(settings, "test"))}
    assert truth == {"1": 1, "2": 0, "3": 0}


def test_class_archives_are_read_as_they_are(tmp_path):
    for number, synset in enumerate(("n01440764", "n01443537", "n01484850")):
        write_tar(
            tmp_path / f"{synset}.tar", [(f"{synset}_{i}.JPEG", encode(pixels(i), "JPEG")) for i in range(number + 1)]
        )
    source = open_source(config(source="ilsvrc", train=str(tmp_path)), "train")
    assert [(record.image_id, record.label) for record in records(source)] == [
        ("n01440764/n01440764_0", 0),
        ("n01443537/n01443537_0", 1),
        ("n01443537/n01443537_1", 1),
        ("n01484850/n01484850_0", 2),
        ("n01484850/n01484850_1", 2),
        ("n01484850/n01484850_2", 2),
    ]
    assert source.count() == 6


def test_parquet_class_names_come_from_the_hub_metadata_or_the_strings(tmp_path):
    assert open_source(parquet(tmp_path), "train").class_names == ["ant", "bee", "cow"]
    text = write_parquet(tmp_path / "text.parquet", text=True)
    assert open_source(config(source="parquet", train=text), "train").class_names == ["class 0", "class 1", "class 2"]
    with pytest.raises(DataError, match="data.image_column"):
        open_source(config(source="parquet", train=text, image_column="img"), "train")


def test_a_damaged_parquet_file_is_quarantined_and_the_others_are_read(tmp_path):
    settings = parquet(tmp_path)
    damaged = tmp_path / "data" / "train-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    found = records(open_source(settings, "train"))
    broken = [record for record in found if isinstance(record, BrokenImage)]
    assert len(found) == 8 and len(broken) == 1 and broken[0].path.endswith("train-00001.parquet")


def test_a_truncated_archive_gives_what_it_has_and_one_quarantine_row(tmp_path):
    settings = webdataset(tmp_path)
    shard = tmp_path / "train-01.tar"
    shard.write_bytes(shard.read_bytes()[:2500])
    found = records(open_source(settings, "train"))
    broken = [record for record in found if isinstance(record, BrokenImage) and "cannot be read on" in record.reason]
    assert len(broken) == 1 and broken[0].path == str(shard)
    assert sum(not isinstance(record, BrokenImage) for record in found) >= 5


def test_members_without_class_or_image_are_quarantined(tmp_path):
    shard = write_tar(
        tmp_path / "a.tar",
        [
            ("a.png", encode(pixels(0))),
            ("a.json", b'{"label": 2}'),
            ("b.png", encode(pixels(1))),
            ("c.cls", b"1"),
            ("d.png", encode(pixels(2))),
            ("d.cls", b"many"),
            ("../e.png", encode(pixels(3))),
            ("../e.cls", b"0"),
        ],
    )
    found = records(open_source(config(source="webdataset", train=shard), "train"))
    assert [(type(record).__name__, record.image_id) for record in found] == [
        ("ImageRecord", "a.tar/a"),
        ("BrokenImage", "a.tar/d"),
        ("ImageRecord", "a.tar/../e"),  # a name is only a name: nothing is ever unpacked
        ("BrokenImage", "a.tar/b"),  # what has no other half is known at the end
        ("BrokenImage", "a.tar/c"),
    ]


def test_idx_files_that_are_cut_give_the_images_that_are_whole(tmp_path):
    settings = idx(tmp_path)
    path = tmp_path / "idx" / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[: 16 + 480 * 6 + 100]))
    found = records(open_source(settings, "train"))
    # One row for the file, from both units that miss images.
    assert [isinstance(record, BrokenImage) for record in found] == [False] * 6 + [True] * 2
    assert found[6] == found[7] and "after 6 images" in found[6].reason and found[6].path == str(path)
    assert np.array_equal(found[2].data, pixels(2)[:, :, 0])


def test_idx_takes_class_names_from_the_configuration_and_refuses_other_files(tmp_path):
    settings = idx(tmp_path)
    settings.class_names = ["ant", "bee", "cow"]
    assert open_source(settings, "train").class_names == ["ant", "bee", "cow"]
    with pytest.raises(DataError, match="images-idx3"):
        open_source(config(source="idx", train=str(tmp_path / "x.gz")), "train")
    (tmp_path / "idx" / "train-labels-idx1-ubyte.gz").write_bytes(b"junk")
    with pytest.raises(DataError, match="labels-idx1-ubyte.gz is not a gzip file"):
        open_source(settings, "train")


def test_a_missing_file_is_named(tmp_path):
    for source in ("parquet", "webdataset"):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            open_source(config(source=source, train=str(tmp_path / "nowhere")), "train")


def test_images_on_a_url_are_read_alike(tmp_path):
    from nvg import storage

    write_folder(tmp_path / "images")
    root = f"memory://{tmp_path.name}/images"
    for file in (tmp_path / "images").rglob("*.png"):
        storage.write_bytes(f"{root}/{file.relative_to(tmp_path / 'images')}", file.read_bytes())
    here, there = (open_source(config(train=place), "train") for place in (str(tmp_path / "images"), root))
    assert [record.image_id for record in records(here)] == [record.image_id for record in records(there)]
    assert here.fingerprint() == there.fingerprint()
    assert records(there)[0].data == records(here)[0].data


def test_a_limit_shortens_the_training_images_alone(tmp_path):
    settings = folder(tmp_path)
    settings.limit, settings.test = 4, settings.train
    assert open_source(settings, "train").count() == 4 and open_source(settings, "test").count() == 9


def test_a_limit_is_exact_in_a_shard_too(tmp_path):
    settings = webdataset(tmp_path)
    whole = [record.image_id for record in records(open_source(settings, "train"))]
    settings.limit = 7
    source = open_source(settings, "train")
    assert [record.image_id for record in records(source)] == whole[:7] and source.count() == 7


def test_names_may_hold_anything_and_a_root_may_occur_twice_in_its_path(tmp_path, monkeypatch):
    names = ("a [1]*?", "b#%::c", "ünï {x}")
    write_folder(tmp_path / "data" / "work" / "data", names)
    monkeypatch.chdir(tmp_path / "data" / "work")
    source = open_source(config(train="data"), "train")
    assert source.class_names == sorted(names) and len(records(source)) == 9
    assert not any(isinstance(record, BrokenImage) for record in records(source))


def test_links_are_followed_and_hidden_files_are_not_images(tmp_path):
    write_folder(tmp_path / "store")
    root = tmp_path / "images"
    (root / ".cache").mkdir(parents=True)
    (root / ".cache" / "x.png").write_bytes(b"x")
    for name in ("ant", "bee", "cow"):
        (root / name).symlink_to(tmp_path / "store" / name)
    (tmp_path / "store" / "ant" / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "store" / "ant" / "loop").symlink_to(root)
    source = open_source(config(train=str(root)), "train")
    assert source.class_names == ["ant", "bee", "cow"] and source.count() == 9


def test_folders_without_images_are_named_when_classes_are_missing(tmp_path):
    root = write_folder(tmp_path / "images", ("ant", "bee"))
    (tmp_path / "images" / "cow").mkdir()
    with pytest.raises(DataError, match="2 classes .ant, bee; without images: cow"):
        open_source(config(train=root), "train")
    with pytest.raises(DataError, match="is not there"):
        open_source(config(train=root + "x"), "train")


def test_class_names_in_another_order_than_the_labels_are_refused(tmp_path):
    root = write_folder(tmp_path / "images")
    with pytest.raises(DataError, match="another order"):
        open_source(config(train=root, class_names=["cow", "bee", "ant"]), "train")
    assert open_source(config(train=root, class_names=["A", "B", "C"]), "train").class_names == ["A", "B", "C"]


def test_numbered_classes_are_counted_in_training_images_and_may_be_fewer_in_held_out_ones(tmp_path):
    for settings in (
        idx(tmp_path),
        config(source="parquet", train=write_parquet(tmp_path / "numbers.parquet")),
    ):
        settings.num_classes, settings.test = 4, settings.train
        with pytest.raises(DataError, match="labels 0 ... 2, but data.num_classes=4"):
            open_source(settings, "train")
        assert open_source(settings, "test").class_names == ["0", "1", "2", "3"]
        settings.class_names = ["a", "b", "c", "d"]
        assert open_source(settings, "train").class_names == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("reader", "reason"),
    [
        ("while True: pass", "its reader was ended by SIGXCPU"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its reader was ended by SIGSEGV"),
        ("raise TypeError('Expecting miINT32')", "TypeError: Expecting miINT32"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_whatever_ends_the_reader_of_the_devkit_is_said_of_the_file(tmp_path, monkeypatch, reader, reason):
    (tmp_path / "meta.mat").write_bytes(b"")
    monkeypatch.setattr(ilsvrc_source, "_READ_MAT", reader)
    monkeypatch.setattr(ilsvrc_source, "_READ_MAT_SECONDS", 1)
    with pytest.raises(DataError, match=rf"meta.mat is no devkit table \({reason}\): fetch it again"):
        ilsvrc_source._devkit_table(str(tmp_path / "meta.mat"))


def test_a_reader_of_the_devkit_that_waits_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "meta.mat").write_bytes(b"")
    monkeypatch.setattr(ilsvrc_source, "_READ_MAT", "import time; time.sleep(3); print('[[1, \"n01440764\"]]')")
    monkeypatch.setattr(ilsvrc_source, "_READ_MAT_SECONDS", 1)
    assert ilsvrc_source._devkit_table(str(tmp_path / "meta.mat")) == {1: "n01440764"}


@pytest.mark.slow
def test_the_devkits_class_numbers_are_no_ranks(tmp_path):
    """The real ground truth counts classes in the order of meta.mat: without that its labels would be wrong."""
    from scipy.io import savemat

    settings = ilsvrc(tmp_path)
    settings.test = str(tmp_path / "val")
    (tmp_path / "val").mkdir()
    for number in range(1, 4):
        (tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(encode(pixels(number), "JPEG"))
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n2\n3\n")

    def labels():
        return [record.label for record in sorted(records(open_source(settings, "test")), key=lambda r: r.image_id)]

    synsets = np.zeros(3, [("ILSVRC2012_ID", int), ("WNID", object)])
    for place, synset in enumerate(("n01484850", "n01440764", "n01443537")):
        synsets[place] = (place + 1, synset)
    (tmp_path / "devkit" / "data").mkdir(parents=True)
    savemat(tmp_path / "devkit" / "data" / "meta.mat", {"synsets": synsets})
    assert labels() == [2, 0, 1]
    print_of_one = open_source(settings, "test").fingerprint()
    truth.write_text("2\n2\n3\n")
    assert labels() == [0, 0, 1] and open_source(settings, "test").fingerprint() != print_of_one
    truth.write_text("2\n2\n4\n")
    with pytest.raises(DataError, match="'4', which is none of the 3 classes"):
        labels()
    (tmp_path / "devkit" / "data" / "meta.mat").unlink()
    (tmp_path / "LOC_synset_mapping.txt").write_text("".join(f"n{number:08d} x\n" for number in range(1000)))
    with pytest.raises(DataError, match="meta.mat"):
        labels()
    truth.write_text("n01484850\nn01440764\nn01440764\n")
    (tmp_path / "LOC_synset_mapping.txt").unlink()
    assert labels() == [2, 0, 0]  # by the training images' synsets


def test_a_part_of_imagenet_may_lie_beside_the_whole_mapping_and_names_are_unique(tmp_path):
    settings = ilsvrc(tmp_path)
    with open(tmp_path / "LOC_synset_mapping.txt", "a") as file:
        file.write("n01491361 tiger shark\n")
    assert open_source(settings, "train").class_names[2] == "great white shark"
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 crane\nn01443537 crane\nn01484850 shark\n")
    assert open_source(settings, "train").class_names == ["crane (n01440764)", "crane (n01443537)", "shark"]


def test_small_row_groups_are_read_together_and_large_ones_in_pieces(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", count=23, group=3)
    source = open_source(config(source="parquet", train=path, unit_images=7), "train")
    assert [source.size(unit) for unit in source.units] == [6, 6, 6, 5]
    path = write_parquet(tmp_path / "b.parquet", count=23, group=20)
    source = open_source(config(source="parquet", train=path, unit_images=7), "train")
    assert [source.size(unit) for unit in source.units] == [7, 7, 6, 3]
    assert [record.image_id for record in records(source)] == [f"b.parquet/{row}" for row in range(23)]
    assert [record.data for record in records(source)] == [encode(pixels(number)) for number in range(23)]


@pytest.mark.parametrize("kind", [pa.dictionary(pa.int32(), pa.string()), pa.large_string()])
def test_string_labels_of_any_arrow_type_are_classes(kind, tmp_path):
    path = tmp_path / "a.parquet"
    labels = pa.array(["b", "a", "c", None]).cast(kind)
    pq.write_table(pa.table({"image": pa.array([encode(pixels(0))] * 4), "label": labels}), path)
    source = open_source(config(source="parquet", train=str(path)), "train")
    assert source.class_names == ["a", "b", "c"]
    assert [getattr(record, "label", None) for record in records(source)] == [1, 0, 2, None]
    with pytest.raises(DataError, match="set data.image_column"):
        open_source(config(source="parquet", train=str(path), image_column="label"), "train")


def test_a_damaged_row_group_is_one_row_and_the_others_are_read(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, count=9, group=3)
    start = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    start = start or pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    found = records(open_source(config(source="parquet", train=str(path), unit_images=9), "train"))
    assert [isinstance(record, BrokenImage) for record in found] == [False] * 3 + [True] + [False] * 3
    assert "row group 1" in found[3].reason


@pytest.mark.parametrize("cut", ["in a header", "after a member", "damaged header", "in gzip"])
def test_what_follows_a_break_in_an_archive_is_one_row_and_never_dropped_in_silence(cut, tmp_path):
    members = [(f"{n}.{kind}", data) for n in range(4) for kind, data in (("cls", b"1"), ("png", encode(pixels(n))))]
    path = tmp_path / "a.tar"
    write_tar(path, members)
    with tarfile.open(path) as archive:
        starts = [member.offset for member in archive.getmembers()]
    data = bytearray(path.read_bytes())
    if cut == "in a header":
        data = data[: starts[4] + 100]
    elif cut == "after a member":  # tarfile alone takes this for the end
        data = data[: starts[4]]
    elif cut == "damaged header":  # and this
        data[starts[4] : starts[4] + 512] = b"\xff" * 512
    else:
        data = gzip.compress(bytes(data))
        data, path = data[: len(data) * 5 // 8], tmp_path / "a.tar.gz"
    path.write_bytes(data)
    found = records(open_source(config(source="webdataset", train=str(path)), "train"))
    assert [isinstance(record, BrokenImage) for record in found] == [False, False, True]
    assert found[2].path == str(path) and "cannot be read on after 1.png" in found[2].reason or cut == "in gzip"


def test_an_outage_of_the_store_is_an_error_and_no_broken_image(tmp_path, monkeypatch):
    from nvg import storage
    from nvg.data.records import read_image

    def fail(error):
        def read(path):
            raise error

        monkeypatch.setattr(storage, "read_bytes", read)

    fail(StorageError("no route"))
    with pytest.raises(StorageError):
        read_image("x", "s3://bucket/x.png", 0)
    fail(PermissionError("not yours"))
    assert "PermissionError" in read_image("x", "/disk/x.png", 0).reason
    fail(FileNotFoundError("gone"))
    assert "gone" in read_image("x", "s3://bucket/x.png", 0).reason


def test_idx_files_that_do_not_belong_together_are_refused_and_a_damaged_one_gives_what_it_can(tmp_path):
    settings = idx(tmp_path)
    folder = tmp_path / "idx"
    path = folder / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = records(open_source(settings, "train"))
    assert 2 <= sum(not isinstance(record, BrokenImage) for record in found) <= 5
    write_idx(tmp_path / "other", np.zeros((5, 20, 24), np.uint8), [0, 1, 2, 0, 1])
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(
        (tmp_path / "other" / "train-labels-idx1-ubyte.gz").read_bytes()
    )
    with pytest.raises(DataError, match="5 of its 5 labels, for the 10 images"):
        open_source(settings, "train")
