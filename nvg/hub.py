"""The Hugging Face hub: a sampler's folder as a model repository, with a card that the hub understands.

Reading needs nothing from here: `hf://org/name[@revision]` is a URL like others (nvg/storage.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from nvg import config as configuration
from nvg import model_card, storage
from nvg.artifacts.models import PARTS, licence_of, load_sampler, model_config, read_metadata
from nvg.config import Config
from nvg.errors import ConfigError, StorageError
from nvg.evaluation.meaning import OF_REAL_IMAGES

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TASK = "unconditional-image-generation"  # the hub has no task for classes; the tags say it
TAGS = ["nvg", "image-generation", "class-conditional", "arxiv:2508.12811"]
HUB_NAMES = {"Apache License 2.0": "apache-2.0"}  # licences of metadata.json that the hub has a name for
IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # as the hub writes licences
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
DATASET = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")
LOAD = {  # by library: how a card says that its folder is loaded
    "nvg": """Install nvg with its extra `hub`.

```python
import nvg

sampler = nvg.load("hf://{repository}")
images = sampler.generate([{classes}], seed=0)  # uint8 (N, H, W, C)
```
""",
    "diffusers": """Install nvg with its extra `diffusers`: the code of this folder imports it.

```python
from diffusers import DiffusionPipeline

folder = "..."  # this folder, on your machine
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
pictures = pipe(class_labels=[{classes}]).images
```
""",
}
OWN_SECTIONS = ("cluster", "tracking")  # of config.yaml: of the machines that trained, and read by nobody


@dataclass(frozen=True)
class Upload:
    """What `nvg push` would upload: a local folder, and what its card says."""

    repository: str
    folder: Path
    licence: str | None
    card: str

    @property
    def files(self) -> dict[str, int]:
        """The names of the files and their bytes."""
        return {path.name: path.stat().st_size for path in sorted(self.folder.iterdir())}


def prepare(
    sampler: str,
    repository: str,
    folder: Path,
    *,
    licence: str | None = None,
    dataset: str | None = None,
    evaluation: str | None = None,
) -> Upload:
    """Fill a local, empty folder with what the hub gets of a sampler (its folder or URL): weights, config.yaml,
    metadata.json, evaluation.json where there is one, and the card as README.md.

    licence: for weights whose metadata.json names none. dataset: of the hub, that it was trained and evaluated on;
    evaluation: the folder of its evaluation. Raises ConfigError for a name that is none of the hub's, a licence that
    the weights do not have and an evaluation of another sampler, CheckpointError for a folder that cannot be used.
    """
    for option, name in {"": repository, "--dataset ": dataset}.items():
        if name is not None and not REPOSITORY.fullmatch(name):
            raise ConfigError(f"{option}{name}: the hub's names are ORG/NAME, such as my-org/my-sampler")
    load_sampler(sampler)  # nothing damaged or unfinished is published
    metadata, config = read_metadata(sampler), model_config(sampler)
    metadata["licence"] = licence = chosen_licence(sampler, licence)
    found = DATASET.match(config.data.train)
    dataset = dataset or (found[1] if found else None)
    figures = read_evaluation(sampler, evaluation)
    text = card(sampler, config, metadata, repository, dataset=dataset, figures=figures)
    source = storage.local_folder(sampler)
    for name in ("tokenizer", *PARTS):
        (folder / f"{name}.safetensors").write_bytes((source / f"{name}.safetensors").read_bytes())
    settings = configuration.read_file(str(source / "config.yaml"))
    kept = {name: section for name, section in settings.items() if name not in OWN_SECTIONS}
    (folder / "config.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
    storage.write_json(str(folder / storage.LAST_FILE), {key: value for key, value in metadata.items() if value})
    if figures is not None:
        storage.write_json(str(folder / "evaluation.json"), figures)
    (folder / "README.md").write_text(text)
    return Upload(repository, folder, licence, text)


def chosen_licence(sampler: str, asked: str | None) -> str | None:
    """The licence to state: that of metadata.json, else the one asked for. Raises ConfigError where they differ, or
    where the hub would not know it."""
    own = licence_of(sampler)
    if asked is None:
        return own
    if not IDENTIFIER.fullmatch(asked):
        raise ConfigError(f"--licence {asked}: write it as the hub does, such as apache-2.0, mit or cc-by-4.0")
    if own is not None and asked != HUB_NAMES.get(own, own):
        raise ConfigError(f"--licence {asked}: the weights of {sampler} have the licence {own!r}: leave --licence out")
    return own or asked


def licence_fields(licence: str | None) -> dict[str, Any]:
    """The fields of a card's front matter that state a licence; none where none is known."""
    if licence is None:
        return {}
    name = HUB_NAMES.get(licence, licence)
    if IDENTIFIER.fullmatch(name):
        return {"license": name}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")}


def read_evaluation(sampler: str, evaluation: str | None) -> dict[str, Any] | None:
    """evaluation.json of an evaluation's folder, of the sampler's own where none is named, None where there is none.

    Raises ConfigError where it is of another sampler."""
    path = storage.join(evaluation or sampler, "evaluation.json")
    if not storage.exists(path):
        if evaluation is not None:
            raise ConfigError(
                f"--evaluation {evaluation} has no evaluation.json: give the folder that evaluate.py made"
            )
        return None
    result = storage.read_json(path)
    measured, own = (PurePosixPath(str(name)).name for name in (result["sampler"], sampler.rstrip("/")))
    if measured != own:
        raise ConfigError(f"--evaluation {evaluation} is of {result['sampler']}, not of {sampler}: give its own")
    return result


def card(
    sampler: str,
    config: Config,
    metadata: dict[str, Any],
    repository: str,
    *,
    dataset: str | None,
    figures: dict[str, Any] | None,
    library: str = "nvg",
) -> str:
    """README.md: front matter for the hub, then MODEL_CARD.md of the sampler's folder, or what the files say."""
    from huggingface_hub import ModelCardData

    results = list(_results(figures, dataset)) if figures is not None and dataset is not None else []
    front = ModelCardData(
        **licence_fields(metadata.get("licence")),
        library_name=library,
        pipeline_tag=TASK,
        tags=TAGS,
        datasets=[dataset] if dataset is not None else None,
        metrics=[result.metric_type for result in results] or None,
        model_name=repository.partition("/")[2],
        eval_results=results or None,
    )
    name, own = repository.partition("/")[2], storage.join(sampler, "MODEL_CARD.md")
    if storage.exists(own):
        body = storage.read_bytes(own).decode()
    else:
        body = model_card.body(config, metadata, name, figures, again=library == "nvg")
    return f"---\n{front.to_yaml()}\n---\n\n{body.rstrip()}\n{_footer(metadata, repository, library)}"


def _results(evaluation: dict[str, Any], dataset: str) -> Iterator[EvalResult]:
    """The sampler's figures with an interval. Their names say the network: no distance on a small classifier is taken
    for FID."""
    from huggingface_hub import EvalResult

    protocol = evaluation["protocol"]
    for name in evaluation["intervals"]:
        if name in OF_REAL_IMAGES:
            continue
        yield EvalResult(
            task_type=TASK,
            dataset_type=dataset,
            dataset_name=dataset.partition("/")[2],
            metric_type=name,
            metric_value=evaluation["figures"][name],
            metric_name=f"{name} ({protocol['network']}, {protocol['samples']:,} samples, {protocol['reference']})",
        )


def _footer(metadata: dict[str, Any], repository: str, library: str) -> str:
    """How to load it, what the method is, and the licence."""
    licence = metadata.get("licence")
    stated = f"The weights have the licence: {licence}." if licence else "Their owner has stated no licence."
    names = metadata["class_names"]
    first = ", ".join(json.dumps(name, ensure_ascii=False) for name in names[:2] if names.count(name) == 1) or "0"
    load = LOAD[library].format(repository=repository, classes=first)
    return f"""
## Load it

{load}
The method is next visual granularity generation (Wang et al., [arXiv 2508.12811](https://arxiv.org/abs/2508.12811)).

## Licence

{stated}
"""


def upload(files: Upload, *, private: bool) -> str:
    """Create the repository where it is not there and upload the files in one commit; returns its address.

    Raises StorageError where the hub cannot be reached or refuses."""
    from huggingface_hub import CommitOperationAdd, HfApi

    interface = HfApi(library_name="nvg")
    additions = [CommitOperationAdd(name, files.folder / name) for name in files.files]
    try:
        address = interface.create_repo(files.repository, private=private, exist_ok=True)
        interface.create_commit(files.repository, additions, commit_message="Upload a sampler by nvg push")
    except Exception as error:
        if not storage.of_client(error):
            raise
        first = str(error).strip().partition("\n")[0]
        raise StorageError(
            f"{files.repository}: {first}: log in with `hf auth login` or set HF_TOKEN, and look whether the hub is up"
        ) from error
    return str(address)
