"""Storage and sources on an S3 server (moto, a process of its own): nothing is mocked on our side."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nvg import storage
from nvg.artifacts.lease import lease
from nvg.data import BrokenImage, open_source
from nvg.errors import DataError, OutputBusy, StorageError
from tests.support import s3
from tests.support.pictures import config, encode, pixels, write_tar

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def server():
    with s3.server() as port:
        yield port


@pytest.fixture
def bucket(server):
    """A bucket's URL; AWS_ENDPOINT_URL points to its server."""
    with s3.environment(server):
        yield "s3://nvg-test"


@pytest.fixture
def way(server):
    """The way to the server, with faults to come; AWS_ENDPOINT_URL points to it."""
    with s3.Way(server) as way, s3.environment(way.own_port):
        yield way


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
        storage.write_bytes(f"{bucket}/shards/train-{number:02d}.tar", Path(shard).read_bytes())
    for pattern in ("train-{00..01}.tar", "train-*.tar", ""):
        shards = open_source(config(source="webdataset", train=storage.join(bucket, "shards", pattern)), "train")
        assert [r.image_id for u in shards.units for r in shards.read(u)] == ["train-00.tar/0", "train-01.tar/0"]
    with pytest.raises(DataError, match="is not there"):
        open_source(config(train=f"{bucket}/nowhere"), "train")


def test_an_artifact_on_a_store_has_one_job_too(bucket):
    folder = f"{bucket}/out/tokens-1"
    with lease(folder), pytest.raises(OutputBusy, match="tokens-1 is being made by another job"), lease(folder):
        pass
    assert storage.list_files(f"{bucket}/out") == []


FAULTS = {
    "500": lambda: [s3.status(500)] * 2,
    "503": lambda: [s3.status(503, "SlowDown")] * 2,
    "slow": lambda: [s3.slow(0.5)] * 2,
    "cut": lambda: [s3.cut] * 2,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_a_while_lose_nothing(way, tmp_path, fault):
    url, data = f"s3://nvg-test/faults-{fault}", bytes(range(256)) * 4000

    def under_faults(function):
        way.faults = FAULTS[fault]()
        result = function()
        assert len(way.faults) < 2, "no request was disturbed"
        way.faults = []
        return result

    under_faults(lambda: storage.write_bytes(f"{url}/a/data.bin", data))
    assert under_faults(lambda: storage.read_bytes(f"{url}/a/data.bin")) == data
    assert under_faults(lambda: storage.list_sizes(url)) == {f"{url}/a/data.bin": len(data)}
    with storage.folder_writer(f"{url}/b") as folder:
        (folder / "data.bin").write_bytes(data)
        (folder / storage.LAST_FILE).write_text("{}")
        way.faults = FAULTS[fault]()
    way.faults = []
    assert (under_faults(lambda: storage.local_folder(f"{url}/b")) / "data.bin").read_bytes() == data

    table = pa.table({"x": list(range(50_000))})
    pq.write_table(table, tmp_path / "x.parquet")
    storage.write_bytes(f"{url}/x.parquet", (tmp_path / "x.parquet").read_bytes())

    def read():
        with storage.open(f"{url}/x.parquet") as file:
            return pq.read_table(file)

    assert under_faults(read).equals(table)
    members = [member for n in range(3) for member in ((f"{n}.png", encode(pixels(n))), (f"{n}.cls", b"1"))]
    shard = write_tar(tmp_path / "x.tar", members)
    storage.write_bytes(f"{url}/x.tar", Path(shard).read_bytes())
    source = open_source(config(source="webdataset", train=f"{url}/x.tar"), "train")
    records = under_faults(lambda: list(source.read(source.units[0])))
    assert [record.data for record in records] == [encode(pixels(n)) for n in range(3)]


def test_an_outage_is_an_error_of_the_store_and_no_broken_image(way, monkeypatch):
    url = "s3://nvg-test/outage/ant/1.png"
    storage.write_bytes(url, encode(pixels(1)))
    storage.write_bytes("s3://nvg-test/outage/t.parquet", b"PAR1 is how it begins")
    source = open_source(config(train="s3://nvg-test/outage", num_classes=1), "train")
    with s3.environment(way.own_port, AWS_MAX_ATTEMPTS="2"):
        way.faults = [s3.status(503, "ServiceUnavailable")] * 99
        with pytest.raises(StorageError, match=f"{url}: .*Look at AWS_ENDPOINT_URL"):
            list(source.read(source.units[0]))
        way.faults = []
    storage.remove(url)
    (broken,) = source.read(source.units[0])  # what is gone is gone, and no outage
    assert isinstance(broken, BrokenImage) and "FileNotFoundError" in broken.reason
    source = open_source(config(source="parquet", train="s3://nvg-test/outage/t.parquet"), "train")
    (broken,) = source.read(source.units[0])  # a file that is hurt is no outage either
    assert isinstance(broken, BrokenImage) and "not a readable Parquet file" in broken.reason


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"])
def test_wrong_keys_are_named_without_the_secret(way, code):
    way.faults = [s3.status(403, code)] * 99
    for ask in (storage.read_bytes, storage.list_files, storage.exists, storage.list_folders):
        with pytest.raises(StorageError, match="s3://nvg-test/x: .*AWS_ACCESS_KEY_ID") as error:
            ask("s3://nvg-test/x")
        assert s3.SECRET not in str(error.value) + repr(error.value.__cause__)
    with pytest.raises(StorageError, match="Look at"):
        storage.write_bytes("s3://nvg-test/x", b"1")


def test_no_keys_no_bucket_and_no_server_are_errors_that_name_the_url(server, monkeypatch):
    with s3.environment(server), pytest.raises(FileNotFoundError):
        storage.read_bytes("s3://no-such-bucket/x")
    with s3.environment(server, AWS_EC2_METADATA_DISABLED="true", AWS_SHARED_CREDENTIALS_FILE="/dev/null"):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(StorageError, match="s3://nvg-test/x: NoCredentialsError"):
            storage.read_bytes("s3://nvg-test/x")
    with s3.environment(1, AWS_MAX_ATTEMPTS="2"), pytest.raises(StorageError, match="EndpointConnectionError"):
        storage.read_bytes("s3://nvg-test/x")
