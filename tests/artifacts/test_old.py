"""What was written before the networks became the released system's is refused, in one sentence that says what to do.

tests/artifacts/old has metadata.json of each kind of artifact, as commit 6a96e75 wrote it (format 1).
"""

import json
import shutil
from pathlib import Path

import pytest

import nvg
from nvg import storage
from nvg.artifacts import models
from nvg.data.tokens import part_name, read_metadata
from nvg.errors import CheckpointError, DataError
from nvg.training.checkpoint import checked_metadata
from nvg.verify import check_folder

OLD = Path(__file__).parent / "old"
READERS = {
    "sampler": nvg.load,
    "tokenizer": models.load_tokenizer,
    "training": checked_metadata,
    "tokens": read_metadata,
}
SENTENCE = (
    r"{folder} was made before the networks became those of the released system \(format 1, this version of nvg reads "
    r"2\): train again, from the tokenizer on$"
)


@pytest.mark.parametrize("kind", READERS)
def test_an_artifact_of_the_old_networks_is_refused(kind: str) -> None:
    folder = str(OLD / kind)
    with pytest.raises(DataError if kind == "tokens" else CheckpointError, match=SENTENCE.format(folder=folder)):
        READERS[kind](folder)


@pytest.mark.parametrize("kind", READERS)
def test_its_check_says_so_and_goes_no_further(kind: str, tmp_path: Path) -> None:
    folder = shutil.copytree(OLD / kind, tmp_path / kind)
    if kind == "tokens":
        (folder / part_name(0, 0)).touch()
    (check,) = check_folder(str(folder))
    assert not check.ok and "train again, from the tokenizer on" in check.detail


def test_no_generator_is_added_to_half_a_sampler_of_the_old_networks(tmp_path: Path) -> None:
    shutil.copy(OLD / "sampler" / "metadata.json", tmp_path / models.HALF)
    with pytest.raises(CheckpointError, match=SENTENCE.format(folder=tmp_path)):
        models.exported_parts(str(tmp_path))


@pytest.mark.parametrize("kind", READERS)
def test_another_number_than_ours_is_refused_by_number(kind: str, tmp_path: Path) -> None:
    metadata = json.loads((OLD / kind / "metadata.json").read_text())
    storage.write_json(f"{tmp_path}/metadata.json", metadata | {"format": storage.FORMAT + 1})
    with pytest.raises((DataError, CheckpointError), match="has format 3, this version of nvg reads 2: make it again"):
        READERS[kind](str(tmp_path))
