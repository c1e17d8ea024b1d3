"""Storage on Ceph's S3 gateway, a real object store: apt-get install radosgw ceph-mon ceph-osd ceph-common."""

import pytest
import s3fs

from nvg import storage
from nvg.artifacts.lease import lease
from nvg.errors import OutputBusy
from tests.support import radosgw, s3

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(radosgw.missing()), reason=f"not here: {radosgw.missing()}: install {radosgw.PACKAGES}"),
]


@pytest.fixture(scope="module")
def bucket():
    with s3.ceph() as port, s3.environment(port):
        s3fs.S3FileSystem().mkdir("nvg-test")
        yield "s3://nvg-test"


def test_files_are_written_read_listed_and_removed(bucket):
    storage.write_bytes(f"{bucket}/a/one.txt", b"1")
    storage.write_bytes(f"{bucket}/a/one.txt", b"2")
    storage.write_json(f"{bucket}/a/two.json", {"x": 1})
    assert storage.read_bytes(f"{bucket}/a/one.txt") == b"2" and storage.read_json(f"{bucket}/a/two.json") == {"x": 1}
    assert storage.list_sizes(f"{bucket}/a") == {f"{bucket}/a/one.txt": 1, f"{bucket}/a/two.json": 13}
    storage.remove(f"{bucket}/a")
    assert not storage.exists(f"{bucket}/a/one.txt") and storage.list_files(f"{bucket}/a") == []


def test_of_two_writers_of_a_new_file_one_is_told(bucket):
    storage.create_bytes(f"{bucket}/b/new", b"1")
    with pytest.raises(FileExistsError):
        storage.create_bytes(f"{bucket}/b/new", b"2")
    assert storage.read_bytes(f"{bucket}/b/new") == b"1"


def test_a_large_folder_goes_up_in_parts_and_comes_down_whole(bucket):
    large = bytes(range(256)) * 300_000  # 77 MB: more than one part
    with storage.folder_writer(f"{bucket}/c") as folder:
        (folder / "large.bin").write_bytes(large)
        (folder / "metadata.json").write_text("{}")
    assert storage.read_bytes(f"{bucket}/c/large.bin") == large


def test_a_second_job_on_an_artifact_refuses(bucket):
    with lease(f"{bucket}/tokens-1"), pytest.raises(OutputBusy, match="process"), lease(f"{bucket}/tokens-1"):
        pass
    assert not storage.exists(f"{bucket}/tokens-1.lease")
