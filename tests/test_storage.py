"""Storage: the same behaviour on a local disk and on an object store's interface."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from nvg import storage
from nvg.errors import DiskFull, StorageError
from tests.support.disk import small_disk


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


def test_a_range_of_a_file_is_read_and_ends_with_the_file(root):
    path = storage.join(root, "a.bin")
    storage.write_bytes(path, b"0123456789")
    assert storage.read_range(path, 3, 4) == b"3456"
    assert storage.read_range(path, 8, 4) == b"89"
    with pytest.raises(FileNotFoundError, match="b.bin"):
        storage.read_range(storage.join(root, "b.bin"), 0, 1)


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


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path):
    started = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"""
from nvg import storage
with storage.folder_writer({str(tmp_path / "step-1")!r}) as folder:
    (folder / "half").write_text("x")
    print("there", flush=True)
    input()
""",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout.readline() == "there\n"
    started.kill()
    started.wait()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".step-1.") and (left / "half").exists()
    with storage.folder_writer(str(tmp_path / "step-10")):
        assert left.exists()  # of another path
    with storage.folder_writer(str(tmp_path / "step-1")) as folder:
        (folder / "whole").write_text("y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-10"]


def test_a_full_disk_leaves_what_was_there_and_is_told_with_the_path(tmp_path):
    large = b"x" * 300_000
    with small_disk(tmp_path / "disk", 200) as grow:
        file, folder = f"{tmp_path}/disk/file.bin", f"{tmp_path}/disk/folder"
        storage.write_bytes(file, b"old")
        with storage.folder_writer(folder) as local:
            (local / "data").write_bytes(b"old")

        def write_folder():
            with storage.folder_writer(folder) as local:
                save_file({"x": torch.zeros(75_000)}, local / "data")  # its error is one of its own

        for write, path in (
            (lambda: storage.write_bytes(file, large), file),
            (lambda: storage.create_bytes(f"{file}.new", large), f"{file}.new"),
            (write_folder, folder),
        ):
            with pytest.raises(DiskFull, match=f"no space left to write {path}: make space and run the same"):
                write()
        assert storage.read_bytes(file) == b"old" == storage.read_bytes(f"{folder}/data")
        (tmp_path / "disk" / "file.bin.new").unlink()
        assert storage.list_files(f"{tmp_path}/disk") == [file, f"{folder}/data"]
        assert len(list((tmp_path / "disk").iterdir())) == 2  # no hidden rest either
        grow(2000)
        storage.write_bytes(file, large)
        write_folder()
        assert storage.read_bytes(file) == large


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


def test_a_folder_that_replaces_another_leaves_none_of_its_files(root):
    target = storage.join(root, "artifact")
    for names in (("old.txt", "metadata.json"), ("new.txt", "metadata.json")):
        with storage.folder_writer(target) as folder:
            for name in names:
                (folder / name).write_text(name)
    assert [file.rsplit("/", 1)[-1] for file in storage.list_files(target)] == ["metadata.json", "new.txt"]


def test_an_upload_that_fails_takes_away_what_it_had_put(root, monkeypatch):
    system, _ = storage._resolve(root)
    target = storage.join(root, "artifact")
    if not storage.is_url(root):
        return
    put = type(system).put_file

    def fail_at_last(self, source, name, *arguments, **options):
        if name.endswith("metadata.json"):
            raise ConnectionError
        return put(self, source, name, *arguments, **options)

    monkeypatch.setattr(type(system), "put_file", fail_at_last)
    with pytest.raises(StorageError, match="ConnectionError"), storage.folder_writer(target) as folder:
        (folder / "data.txt").write_text("x")
        (folder / "metadata.json").write_text("{}")
    assert storage.list_files(root) == []


def test_two_folders_with_files_of_equal_names_and_sizes_are_two_copies(tmp_path):
    copies = []
    for name, data in (("a", b"1"), ("b", b"2"), ("a", b"3")):
        url = f"memory://nvg-{tmp_path.name}/{name}"
        storage.write_bytes(f"{url}/weights", data)
        copies.append((storage.local_folder(url) / "weights").read_bytes())
    assert copies == [b"1", b"2", b"3"]


def test_listed_paths_begin_with_the_path_that_was_given(root, tmp_path, monkeypatch):
    storage.write_bytes(storage.join(root, "data", "data", "x.bin"), b"12")
    monkeypatch.chdir(tmp_path)
    base = "data" if not storage.is_url(root) else storage.join(root, "data")
    assert storage.list_sizes(base + "/") == {f"{storage.absolute(base)}/data/x.bin": 2}
    assert storage.list_folders(base) == ["data"] and storage.list_folders(storage.join(base, "data")) == []
    assert storage.list_folders(storage.join(root, "nowhere")) == []


def test_names_that_look_like_patterns_or_urls_are_names(tmp_path):
    for name in ("a [1]*?.bin", "b#%::c.bin", "{x}.bin", "~.bin"):
        path = str(tmp_path / name)
        storage.write_bytes(path, name.encode())
        assert storage.read_bytes(path) == name.encode() and storage.expand(path, (".bin",)) == [path]
        with storage.open(path) as file:
            assert file.read() == name.encode()
    assert len(storage.expand(str(tmp_path), (".bin",))) == 4


def test_a_missing_file_of_a_brace_pattern_is_named(root):
    storage.write_bytes(storage.join(root, "train-00.tar"), b"x")
    with pytest.raises(FileNotFoundError, match=r"train-01\.tar"):
        storage.expand(storage.join(root, "train-{00..01}.tar"), (".tar",))


def test_a_folder_named_like_a_file_is_a_folder(root):
    storage.write_bytes(storage.join(root, "set.parquet", "part-0.parquet"), b"x")
    assert [f.rsplit("/", 1)[-1] for f in storage.expand(storage.join(root, "*.parquet"), (".parquet",))] == [
        "part-0.parquet"
    ]
    assert len(storage.expand(storage.join(root, "set.parquet"), (".parquet",))) == 1
