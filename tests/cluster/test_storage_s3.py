"""Storage and sources on an S3 server (moto, a process of its own): nothing is mocked on our side."""

import os
import socket
import subprocess
import sys
import time

import pytest
import s3fs

from nvg import storage
from nvg.data import DataError, open_source
from tests.data.pictures import config, encode, pixels, write_tar

pytestmark = pytest.mark.timeout(900)  # jobs on a Ray that may share its cores

SETTINGS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket's URL; AWS_ENDPOINT_URL points to its server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**SETTINGS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            patch.setenv(name, value)
        patch.setenv("NO_PROXY", ",".join(filter(None, ["127.0.0.1", os.environ.get("NO_PROXY")])))
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            end = time.time() + 60
            while True:
                assert server.poll() is None and time.time() < end, "the S3 server did not start"
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            s3fs.S3FileSystem().mkdir("nvg-test")
            yield "s3://nvg-test"
        finally:
            server.terminate()
            server.wait()
            s3fs.S3FileSystem.clear_instance_cache()


def test_files_are_written_read_listed_and_removed(bucket):
    url = storage.join(bucket, "files")
    storage.write_json(f"{url}/a/x.json", [1, 2])
    storage.write_bytes(f"{url}/a b/ü#%.bin", b"123")
    assert storage.read_json(f"{url}/a/x.json") == [1, 2] and storage.exists(url)
    assert storage.list_sizes(url, (".BIN",)) == {f"{url}/a b/ü#%.bin": 3}
    assert storage.read_bytes(f"{url}/a b/ü#%.bin") == b"123" and storage.list_folders(url) == ["a", "a b"]
    with storage.open(f"{url}/a/x.json", "r") as file:
        assert file.read().startswith("[")
    storage.remove(url)
    assert not storage.exists(url) and storage.list_files(url) == []
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{url}/a/x.json")


def test_a_folder_is_uploaded_whole_replaces_and_is_downloaded_anew(bucket):
    url = storage.join(bucket, "artifact")
    copies = []
    for names, text in ((("old.txt", "metadata.json"), "{1}"), (("new.txt", "metadata.json"), "{2}")):
        with storage.folder_writer(url) as folder:
            for name in names:
                (folder / name).write_text(text)
        copies.append(storage.local_folder(url))
    assert sorted(path.name for path in copies[1].iterdir()) == ["metadata.json", "new.txt"]
    assert (copies[0] / "metadata.json").read_text() == "{1}" and (copies[1] / "metadata.json").read_text() == "{2}"
    assert storage.local_folder(url) == copies[1]
    with pytest.raises(RuntimeError), storage.folder_writer(storage.join(bucket, "half")) as folder:
        (folder / "data.txt").write_text("x")
        raise RuntimeError
    assert not storage.exists(storage.join(bucket, "half"))


def test_image_folders_and_shards_are_read_from_a_bucket(bucket, tmp_path):
    for label, name in enumerate(("ant", "bee", "cow")):
        for number in range(2):
            storage.write_bytes(f"{bucket}/images/{name}/{number}.png", encode(pixels(10 * label + number)))
    source = open_source(config(train=f"{bucket}/images"), "train")
    records = [record for unit in source.units for record in source.reader().read(unit)]
    assert sorted(record.image_id for record in records)[:2] == ["ant/0.png", "ant/1.png"]
    assert all(record.data == storage.read_bytes(record.path) for record in records)
    assert source.class_names == ["ant", "bee", "cow"] and source.count() == 6
    for number in range(2):
        members = [("0.png", encode(pixels(number))), ("0.cls", b"2")]
        shard = write_tar(tmp_path / "x.tar", members)
        storage.write_bytes(f"{bucket}/shards/train-{number:02d}.tar", open(shard, "rb").read())
    for pattern in ("train-{00..01}.tar", "train-*.tar", ""):
        shards = open_source(config(source="webdataset", train=storage.join(bucket, "shards", pattern)), "train")
        assert [r.image_id for u in shards.units for r in shards.read(u)] == ["train-00.tar/0", "train-01.tar/0"]
    with pytest.raises(DataError, match="is not there"):
        open_source(config(train=f"{bucket}/nowhere"), "train")
