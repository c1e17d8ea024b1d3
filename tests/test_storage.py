"""Storage: the same behaviour on a local disk and on an object store's interface."""

import json

import pytest

from nvg import storage


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path)
    else:
        yield f"memory://nvg-{tmp_path.name}"
        storage.remove(f"memory://nvg-{tmp_path.name}")


def test_what_is_written_is_read_listed_and_removed(root):
    storage.write_bytes(storage.join(root, "a", "b.bin"), b"123")
    storage.write_json(storage.join(root, "a", "c.json"), {"x": [1, 2]})
    assert storage.read_bytes(storage.join(root, "a", "b.bin")) == b"123"
    assert storage.read_json(storage.join(root, "a", "c.json")) == {"x": [1, 2]}
    assert [file.rsplit("/", 1)[-1] for file in storage.list_files(root)] == ["b.bin", "c.json"]
    assert [storage.read_bytes(file) for file in storage.list_files(root, (".BIN",))] == [b"123"]
    storage.remove(storage.join(root, "a"))
    assert not storage.exists(storage.join(root, "a", "b.bin")) and storage.list_files(root) == []


def test_a_folder_appears_whole_and_replaces_an_older_one(root):
    target = storage.join(root, "artifact")
    for text in ("old", "new"):
        with storage.folder_writer(target) as folder:
            (folder / "data.txt").write_text(text)
            (folder / "metadata.json").write_text(json.dumps({"text": text}))
            assert storage.exists(storage.join(target, "data.txt")) is (text == "new")
    assert storage.read_bytes(storage.join(target, "data.txt")) == b"new"
    assert (storage.local_folder(target) / "data.txt").read_text() == "new"


def test_a_folder_that_fails_leaves_nothing(root):
    with pytest.raises(RuntimeError), storage.folder_writer(storage.join(root, "artifact")) as folder:
        (folder / "data.txt").write_text("half")
        raise RuntimeError
    assert storage.list_files(root) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = str(tmp_path / "file.json")
    storage.write_json(path, 1)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_json(path, 2)
    assert storage.read_json(path) == 1 and len(list(tmp_path.iterdir())) == 1


def test_patterns_name_files_and_a_pattern_without_any_is_an_error(root):
    for name in ("train-00.tar", "train-01.tar", "val-00.tar", "notes.txt"):
        storage.write_bytes(storage.join(root, name), b"x")

    def names(pattern):
        return [file.rsplit("/", 1)[-1] for file in storage.expand(storage.join(root, pattern), (".tar",))]

    assert names("train-*.tar") == names("train-{00..01}.tar") == ["train-00.tar", "train-01.tar"]
    assert names("{train,val}-00.tar") == ["train-00.tar", "val-00.tar"]
    assert storage.expand(root, (".tar",)) == storage.list_files(root, (".tar",))
    with pytest.raises(FileNotFoundError, match="test-"):
        names("test-*.tar")


def test_the_fingerprint_tells_names_and_sizes_and_not_where_the_folder_is(tmp_path):
    prints = []
    for folder, name, data in (("a", "x", b"1"), ("b", "x", b"1"), ("c", "y", b"1"), ("d", "x", b"12")):
        storage.write_bytes(str(tmp_path / folder / name), data)
        prints.append(storage.fingerprint(storage.list_files(str(tmp_path / folder)), str(tmp_path / folder)))
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_damaged_json_and_writing_by_open_are_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"x\.json is not JSON"):
        storage.read_json(str(tmp_path / "x.json"))
    with pytest.raises(ValueError, match="reads only"), storage.open(str(tmp_path / "y"), "w"):
        pass
    with pytest.raises(FileNotFoundError, match="nowhere"):
        storage.local_folder(str(tmp_path / "nowhere"))
