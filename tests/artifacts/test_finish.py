"""A folder is finished by metadata.json alone, which is written after everything else."""

import torch

from nvg.artifacts.models import HALF, exported_parts, finish_folder, write_sampler, write_tokenizer
from nvg.autoencoder import Autoencoder
from nvg.generator import ContentGenerator, StructureGenerator
from tests.support.toy_config import toy_config

CLASSES = ["cat", "dog"]


def test_a_written_tokenizer_is_unfinished_until_its_metadata_is_there(tmp_path):
    config = toy_config()
    torch.manual_seed(0)
    state = Autoencoder(config.tokenizer).state_dict()
    metadata = write_tokenizer(str(tmp_path), state, config, class_names=CLASSES, metadata={"run_id": "r"})
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.safetensors", "config.yaml"}
    assert finish_folder(str(tmp_path), metadata)
    assert (tmp_path / "metadata.json").exists() and metadata["run_id"] == "r"


def test_half_a_sampler_is_finished_by_the_other_half(tmp_path):
    config, folder = toy_config(), str(tmp_path)
    torch.manual_seed(0)
    tokenizer = Autoencoder(config.tokenizer).state_dict()
    halves = {
        "content": ContentGenerator(config.content).state_dict(),
        "structure": StructureGenerator(config.structure).state_dict(),
    }
    complete = []
    for part, state in halves.items():
        metadata = write_sampler(
            folder, tokenizer=tokenizer, parts={part: state}, config=config, class_names=CLASSES, metadata={}
        )
        complete.append(finish_folder(folder, metadata))
        assert (tmp_path / HALF).exists() == (part == "content")
    assert complete == [False, True] and (tmp_path / "metadata.json").exists()
    assert exported_parts(folder) == ["content", "structure"]
