"""Labels mean what the files say: one numbering for training and test images, whatever their layout and order."""

import json
import shutil
import unicodedata
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nvg.data import BrokenImage, open_source
from nvg.data.classes import in_order, told_apart, whole_number
from nvg.data.sources.splits import split_of
from nvg.errors import DataError
from tests.support.pictures import config, encode, pixels, write_folder, write_idx, write_parquet, write_tar

SYNSETS = {"ant": "n00000001", "bee": "n00000002", "cow": "n00000003", "dog": "n00000004"}


def records(source):
    return [record for unit in source.units for record in source.reader().read(unit)]


def parquet(path, labels, names=None, kind=None, image=None):
    """A Parquet file of pictures with these labels; image n of the file is pixels(n)."""
    images = pa.array([encode(pixels(number)) for number in range(len(labels))], image or pa.binary())
    table = pa.table({"image": images, "label": labels if isinstance(labels, pa.Array) else pa.array(labels, kind)})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return str(path)


def folder_of(root, classes):
    return config(source="folder", **{root.name: write_folder(root, classes)})


def synsets_of(root, classes):
    return config(source="ilsvrc", **{root.name: write_folder(root, [SYNSETS[name] for name in classes])})


def archives_of(root, classes):
    root.mkdir()
    for name in classes:
        write_tar(root / f"{SYNSETS[name]}.tar", [(f"{name}.JPEG", encode(pixels(0), "JPEG"))])
    return config(source="ilsvrc", **{root.name: str(root)})


def strings_of(root, classes):
    return config(source="parquet", **{root.name: parquet(root / "0.parquet", list(classes))})


def hub_of(root, classes):
    path = parquet(root / "0.parquet", list(range(len(classes))), list(classes))
    return config(source="parquet", **{root.name: path})


def hub_reversed(root, classes):
    path = parquet(root / "0.parquet", list(range(len(classes))), list(classes)[::-1])
    return config(source="parquet", **{root.name: path})


def split(tmp_path, make_train, make_test, train, test):
    """A configuration of training images of some classes, and test images of others."""
    settings = make_train(tmp_path / "train", train)
    settings.test = make_test(tmp_path / "test", test).test
    settings.num_classes = len(train)
    return settings


NAMED = [
    (folder_of, folder_of),
    (synsets_of, synsets_of),
    (synsets_of, archives_of),
    (strings_of, strings_of),
    (hub_of, hub_of),
    (hub_of, hub_reversed),
    (hub_of, strings_of),
    (strings_of, hub_reversed),
]


def names_of_labels(source, names):
    return sorted({names[record.label] for record in records(source)})


@pytest.mark.parametrize(("make_train", "make_test"), NAMED)
def test_test_images_are_numbered_by_the_training_images_classes(make_train, make_test, tmp_path):
    settings = split(tmp_path, make_train, make_test, ("ant", "bee", "cow"), ("bee", "cow"))
    train, test = open_source(settings, "train"), open_source(settings, "test")
    assert test.class_names == train.class_names and len(test.class_names) == 3
    assert open_source(settings, "test", train).class_names == train.class_names
    expected = [SYNSETS[name] if settings.source == "ilsvrc" else name for name in ("bee", "cow")]
    assert names_of_labels(test, train.classes) == expected


@pytest.mark.parametrize(("make_train", "make_test"), NAMED)
@pytest.mark.parametrize("test", [("bee", "cow", "dog"), ("ant", "bee", "cow", "dog"), ("dog",)])
def test_a_class_that_training_lacks_is_refused_by_name(make_train, make_test, test, tmp_path):
    settings = split(tmp_path, make_train, make_test, ("ant", "bee", "cow"), test)
    name = SYNSETS["dog"] if settings.source == "ilsvrc" else "dog"
    with pytest.raises(DataError, match=f"images of class '{name}', which data.train has not"):
        open_source(settings, "test")


def test_a_class_that_a_test_file_names_without_images_of_it_does_no_harm(tmp_path):
    settings = split(tmp_path, hub_of, hub_of, ("ant", "bee", "cow"), ())
    settings.test = parquet(tmp_path / "test.parquet", [1, 2, 1], ["dog", "cow", "bee"])
    test = open_source(settings, "test")
    assert [record.label for record in records(test)] == [2, 1, 2]


@pytest.mark.parametrize(("train", "test"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("make", [folder_of, strings_of, hub_of])
def test_names_are_one_however_their_letters_are_composed(make, train, test, tmp_path):
    names = ("bär", "café", "Ångström")
    settings = split(
        tmp_path,
        make,
        make,
        [unicodedata.normalize(train, name) for name in names],
        [unicodedata.normalize(test, name) for name in names[1:]],
    )
    source = open_source(settings, "train")
    assert sorted(source.class_names) == sorted(names)
    assert names_of_labels(open_source(settings, "test"), source.class_names) == sorted(names[1:])


def test_one_class_in_two_folders_of_one_name_is_one_class(tmp_path):
    root = write_folder(tmp_path, [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")] + ["tea"])
    source = open_source(config(train=root, num_classes=2), "train")
    assert source.class_names == ["café", "tea"] and source.count() == len(records(source)) == 9


def test_another_case_of_a_name_is_another_class_and_the_message_shows_both(tmp_path):
    settings = split(tmp_path, folder_of, folder_of, ("ant", "bee", "cow"), ("Bee",))
    with pytest.raises(DataError, match="class 'Bee', which data.train has not; data.train has 'bee'"):
        open_source(settings, "test")


def test_names_of_no_unicode_are_spelled_out(tmp_path):
    write_folder(tmp_path, ["caf\udce9", "tea"])
    names = open_source(config(train=str(tmp_path), num_classes=2), "train").class_names
    assert names == ["caf\\udce9", "tea"] and json.dumps(names).isascii()


def test_without_training_images_a_test_split_is_numbered_by_itself(tmp_path):
    """A sampler is evaluated on a machine that has the test images alone."""
    settings = split(tmp_path, folder_of, folder_of, ("ant", "bee"), ("ant", "bee"))
    shutil.rmtree(settings.train)
    assert open_source(settings, "test").class_names == ["ant", "bee"]


@pytest.mark.parametrize("make", [folder_of, strings_of])
def test_names_that_are_numbers_are_in_the_order_of_numbers(make, tmp_path):
    """So that data.class_names, in the order of the numbers, names them rightly: 10 does not come before 2."""
    settings = make(tmp_path / "train", [str(number) for number in range(12)])
    settings.num_classes, settings.class_names = 12, [f"class {number}" for number in range(12)]
    source = open_source(settings, "train")
    assert source.classes == [str(number) for number in range(12)] and source.class_names[10] == "class 10"
    assert in_order(["b", "10", "9"]) == ["10", "9", "b"]


@pytest.mark.parametrize("names", [["cow", "bee", "ant"], ["Cow", "bee", "Ant"], ["ant", "cow", "insect"]])
def test_configured_names_that_stand_at_another_place_are_refused(names, tmp_path):
    with pytest.raises(DataError, match="another order"):
        open_source(config(train=write_folder(tmp_path), class_names=names), "train")


# ---- Parquet files of one set ----


def test_each_files_numbers_go_by_its_own_names(tmp_path):
    parquet(tmp_path / "0.parquet", [0, 1, 2], ["cat", "cow", "dog"])
    parquet(tmp_path / "1.parquet", [0, 1, 2], ["dog", "cow", "cat"])
    parquet(tmp_path / "2.parquet", ["dog", "cat", "cow"])
    source = open_source(config(source="parquet", train=str(tmp_path)), "train")
    assert source.class_names == ["cat", "cow", "dog"]
    assert [record.label for record in records(source)] == [0, 1, 2, 2, 1, 0, 2, 0, 1]


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("named", [{"names": ["ant", "bee", "cow"], "labels": [0, 1, 2]}, {"labels": ["a", "b", "c"]}])
def test_files_with_names_beside_files_without_are_refused_by_both_names(named, swap, tmp_path):
    first, second = ("b", "a") if swap else ("a", "b")
    parquet(tmp_path / f"{first}.parquet", **named)
    parquet(tmp_path / f"{second}.parquet", [0, 1, 2])
    settings = config(source="parquet", train=str(tmp_path))
    with pytest.raises(DataError, match=f"{first}.parquet names its classes and .*{second}.parquet has numbers"):
        open_source(settings, "train")
    settings.class_names = ["ant", "bee", "cow"]  # these say what the numbers mean
    labels = [record.label for record in records(open_source(settings, "train"))]
    assert labels == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("swap", [False, True])
def test_a_split_with_names_beside_a_split_without_is_refused(swap, tmp_path):
    both = [parquet(tmp_path / "a.parquet", [0, 1, 2], ["ant", "bee", "cow"]), parquet(tmp_path / "b.parquet", [2, 1])]
    train, test = both[::-1] if swap else both
    settings = config(source="parquet", train=train, test=test, num_classes=3)
    with pytest.raises(DataError, match="names its classes and .* has numbers without names"):
        open_source(settings, "test")
    settings.class_names = ["ant", "bee", "cow"]
    found = [record.label for record in records(open_source(settings, "test"))]
    assert found == ([0, 1, 2] if swap else [2, 1])


def test_two_classes_of_one_name_are_told_apart_by_their_numbers(tmp_path):
    path = parquet(tmp_path / "0.parquet", [0, 1, 2], ["crane", "crane", "cow"])
    settings = config(source="parquet", train=path, test=path)
    assert open_source(settings, "train").class_names == ["crane (0)", "crane (1)", "cow"]
    assert [record.label for record in records(open_source(settings, "test"))] == [0, 1, 2]
    parquet(tmp_path / "1.parquet", [0, 1, 2], ["cow", "crane", "crane"])
    settings.test = str(tmp_path / "1.parquet")
    for change in ({}, {"train": str(tmp_path)}):
        for name, value in change.items():
            setattr(settings, name, value)
        with pytest.raises(DataError, match="parquet has two classes of one name"):
            open_source(settings, "train" if change else "test")


@pytest.mark.parametrize(
    ("names", "apart"),
    [
        (["a", "a", "b"], ["a (0)", "a (1)", "b"]),
        (["a", "a", "a (0)"], ["a (0) (0)", "a (1)", "a (0) (2)"]),
        (["café", "cafe\u0301", "b"], ["café (0)", "café (1)", "b"]),
    ],
)
def test_configured_names_are_told_apart_too(names, apart, tmp_path):
    found = open_source(config(train=write_folder(tmp_path), class_names=names), "train").class_names
    assert found == apart and len(set(found)) == 3 and told_apart(found) == found


# ---- labels that begin at 1 ----


def idx_labels(tmp_path, labels):
    return config(source="idx", channels=1, train=write_idx(tmp_path, np.zeros((len(labels), 4, 4), np.uint8), labels))


def parquet_labels(tmp_path, labels):
    return config(source="parquet", train=parquet(tmp_path / "a.parquet", labels))


def parquet_doubles(tmp_path, labels):
    return config(source="parquet", train=parquet(tmp_path / "a.parquet", [float(label) for label in labels]))


def hub_labels(tmp_path, labels):
    return config(source="parquet", train=parquet(tmp_path / "a.parquet", labels, ["ant", "bee", "cow"]))


def shard_labels(tmp_path, labels):
    members = [(f"{n}.{kind}", data) for n, label in enumerate(labels) for kind, data in sample_of(n, label)]
    tmp_path.mkdir(exist_ok=True)
    return config(source="webdataset", train=write_tar(tmp_path / "a.tar", members))


def json_labels(tmp_path, labels):
    members = []
    for number, label in enumerate(labels):
        members += [
            (f"{number}.png", encode(pixels(number))),
            (f"{number}.json", json.dumps({"label": label}).encode()),
        ]
    tmp_path.mkdir(exist_ok=True)
    return config(source="webdataset", train=write_tar(tmp_path / "a.tar", members))


def sample_of(number, label):
    return (("png", encode(pixels(number))), ("cls", b"%d\n" % label))


NUMBERED = [idx_labels, parquet_labels, parquet_doubles, hub_labels, shard_labels, json_labels]


@pytest.mark.parametrize("names", [None, ["ant", "bee", "cow"]])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("make", NUMBERED)
def test_labels_that_begin_at_1_are_refused(make, split, names, tmp_path):
    settings = make(tmp_path / "wrong", [1, 2, 3, 2])
    settings.class_names = names
    if split == "test":
        settings.train, settings.test = make(tmp_path / "right", [0, 1, 2]).train, settings.train
    with pytest.raises(DataError, match="labels are 1 ... 3: do they begin at 1?"):
        open_source(settings, split).count()  # shards are walked through to be counted
        raise AssertionError(f"{split} was accepted")


@pytest.mark.parametrize("make", [shard_labels, json_labels])
def test_labels_of_shards_that_begin_at_1_stop_a_reader_and_a_limit(make, tmp_path):
    settings = make(tmp_path, [1, 2, 3, 2])
    with pytest.raises(DataError, match="begin at 1?"):
        records(open_source(settings, "train"))
    settings.limit = 2
    with pytest.raises(DataError, match="begin at 1?"):
        open_source(settings, "train")


@pytest.mark.parametrize("make", [idx_labels, parquet_labels, parquet_doubles])
def test_class_0_may_be_empty_where_all_classes_are_named(make, tmp_path):
    """EMNIST's letters are 1 ... 26. Without names a fourth class would only hide that its labels begin at 1."""
    settings = make(tmp_path, [1, 2, 3])
    settings.num_classes = 4
    with pytest.raises(DataError, match="labels are 1 ... 3: do they begin at 1?.*set data.num_classes=4 and name all"):
        open_source(settings, "train")
    settings.class_names = ["none", "ant", "bee", "cow"]
    assert [record.label for record in records(open_source(settings, "train"))] == [1, 2, 3]


@pytest.mark.parametrize("make", NUMBERED)
def test_held_out_images_may_lack_the_first_class_and_the_last(make, tmp_path):
    settings = make(tmp_path / "train", [0, 1, 2])
    settings.test = make(tmp_path / "test", [1, 1]).train
    assert [record.label for record in records(open_source(settings, "test"))] == [1, 1]


def test_numbers_that_are_no_class_of_a_hub_file_are_broken_images(tmp_path):
    """A hub's test split without labels has -1."""
    found = records(open_source(hub_labels(tmp_path, [0, -1, 3, 2]), "train"))
    assert [getattr(record, "label", None) for record in found] == [0, None, None, 2]
    assert "class -1 is none of 0 ... 2" in found[1].reason


# ---- types ----

LABELS = {
    "int64": pa.array([0, 1, None], pa.int64()),
    "uint8": pa.array([0, 1, None], pa.uint8()),
    "uint64": pa.array([0, 1, None], pa.uint64()),
    "bool": pa.array([False, True, None]),
    "double": pa.array([0.0, 1.0, None]),
    "a fraction": pa.array([0.0, 1.0, 0.5]),
    "not a number": pa.array([0.0, 1.0, float("nan")]),
    "half": pa.array(np.array([0, 1, 0.25], np.float16)),
    "decimal": pa.array([Decimal("0.00"), Decimal("1.00"), Decimal("0.50")]),
    "dictionary of numbers": pa.array([0, 1, None]).dictionary_encode(),
    "string": pa.array(["a", "b", None]),
    "large_string": pa.array(["a", "b", None], pa.large_string()),
    "string_view": pa.array(["a", "b", None], pa.string_view()),
    "dictionary of strings": pa.array(["a", "b", None]).dictionary_encode(),
    "dictionary of large strings": pa.array(["a", "b", None], pa.large_string()).dictionary_encode(),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_type_are_read_and_one_that_is_none_is_a_broken_image(kind, tmp_path):
    path = parquet(tmp_path / "a.parquet", LABELS[kind])
    found = records(open_source(config(source="parquet", train=path, num_classes=2), "train"))
    assert [getattr(record, "label", None) for record in found] == [0, 1, None]
    assert "no class" in found[2].reason


@pytest.mark.parametrize("null", [pa.null(), pa.int64(), pa.string()])
@pytest.mark.parametrize("names", [None, ["ant", "bee", "cow"]])
def test_a_shard_whose_labels_are_all_null_is_broken_images_beside_a_good_one(names, null, tmp_path):
    parquet(tmp_path / "a.parquet", [None, None], names, null)
    parquet(tmp_path / "b.parquet", [0, 1, 2], names)
    found = records(open_source(config(source="parquet", train=str(tmp_path)), "train"))
    assert [getattr(record, "label", None) for record in found] == [None, None, 0, 1, 2]
    assert found[0].reason == "no class: column 'label' is null"


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
@pytest.mark.parametrize("in_struct", [False, True])
def test_image_bytes_of_every_type_are_read(kind, in_struct, tmp_path):
    images = pa.array([encode(pixels(0)), encode(pixels(1)), None], kind)
    if in_struct:
        paths = pa.array([None, None, "0.png"])
        images = pa.StructArray.from_arrays([images, paths], ["bytes", "path"])
    pq.write_table(pa.table({"image": images, "label": [0, 1, 0]}), tmp_path / "a.parquet")
    settings = config(source="parquet", train=str(tmp_path), num_classes=2)
    first, second, broken = records(open_source(settings, "train"))
    assert (first.data, second.data) == (encode(pixels(0)), encode(pixels(1)))
    assert "column 'image' holds no bytes" in broken.reason
    assert ("only the path '0.png'" in broken.reason) == in_struct


def test_a_shard_without_any_image_is_broken_images_beside_a_good_one(tmp_path):
    pq.write_table(pa.table({"image": pa.nulls(2), "label": [0, 1]}), tmp_path / "a.parquet")
    parquet(tmp_path / "b.parquet", [0, 1, 2])
    found = records(open_source(config(source="parquet", train=str(tmp_path)), "train"))
    assert [isinstance(record, BrokenImage) for record in found] == [True, True, False, False, False]


@pytest.mark.parametrize("value", [3, 3.0, "3", " 3\n", "3.0", Decimal("3.00"), np.float32(3).item()])
def test_whole_numbers_are_labels_whatever_their_type(value):
    assert whole_number(value) == 3 and type(whole_number(value)) is int


@pytest.mark.parametrize(
    "value", [2.9, "2.9", "", "many", None, [3], {"a": 3}, float("nan"), float("inf"), "1e999999999", 2**64, b"3"]
)
def test_anything_else_is_no_label(value):
    with pytest.raises(ValueError, match="is no whole number"):
        whole_number(value)


# ---- splits ----


def hub_layout(root, names, suffix):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if suffix == "parquet":
            write_parquet(root / f"{name}.parquet", count=3 + number)
        else:
            write_tar(
                root / f"{name}.tar", [(f"{n}.{k}", d) for n in range(3 + number) for k, d in sample_of(n, n % 3)]
            )
    return str(root)


LAYOUTS = {
    "files": ["train-00000-of-00001", "validation-00000-of-00001", "test-00000-of-00001"],
    "files in data": ["data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001"],
    "folders": ["default/train/0000", "default/test/0000"],
    "folders of a part": ["default/partial-train/0000", "default/partial-validation/0000"],
    "plain names": ["train", "test"],
    "other words": ["my_training_0", "my_dev_0"],
    "two names of one": ["en.train", "en.eval"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", ["parquet", "tar"])
@pytest.mark.parametrize("pattern", ["", "/**"])
def test_a_folder_of_several_splits_is_refused_with_paths_that_work(layout, suffix, pattern, tmp_path):
    root = hub_layout(tmp_path / "test" / "train" / "hub", LAYOUTS[layout], suffix)
    source = "parquet" if suffix == "parquet" else "webdataset"
    with pytest.raises(DataError, match="holds the files of . splits") as refused:
        open_source(config(source=source, train=root + pattern), "train")
    paths = str(refused.value).partition("give the path of one, ")[2].split(" or ")
    counts = [open_source(config(source=source, train=path), "train").count() for path in paths]
    whole = [
        open_source(config(source=source, train=f"{root}/{name}.{suffix}"), "train").count() for name in LAYOUTS[layout]
    ]
    assert len(paths) > 1 and sum(counts) == sum(whole)


def test_a_path_that_names_several_splits_means_them(tmp_path):
    root = hub_layout(tmp_path, LAYOUTS["files"], "parquet")
    source = open_source(config(source="parquet", train=f"{root}/{{train,validation}}-*.parquet"), "train")
    assert source.count() == 7


@pytest.mark.parametrize("names", [["train", "test"], ["train", "val"], ["Training", "Validation"]])
def test_an_image_folder_of_splits_is_no_folder_of_classes(names, tmp_path):
    for name in names:
        write_folder(tmp_path / name)
    with pytest.raises(DataError, match=f"folders of splits, not of classes: .*/{names[0]}"):
        open_source(config(train=str(tmp_path), num_classes=2), "train")
    assert open_source(config(train=str(tmp_path / names[0])), "train").count() == 9


@pytest.mark.parametrize(("names", "deep"), [(["train", "car"], False), (["train"], False)])
def test_a_class_may_be_called_train(names, deep, tmp_path):
    source = open_source(config(train=write_folder(tmp_path, names), num_classes=len(names)), "train")
    assert sorted(source.class_names) == sorted(names)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("my_val.tar", "validation"),
        ("TEST.parquet", "test"),
        ("trainer.parquet", None),
        ("contest-1.parquet", None),
        ("valley.parquet", None),
    ],
)
def test_words_in_names_are_splits_and_parts_of_words_are_not(name, split):
    assert split_of(name) == split
