"""MLflow for real: a server with PostgreSQL and S3, runs on it, its registry, a served model that follows an alias."""

import json

import httpx
import numpy as np
import pytest
import s3fs

import nvg
from nvg import pyfunc, tracking
from nvg.artifacts.models import ASSETS, read_metadata
from tests.support import mlflow_server, s3
from tests.support.processes import replicas
from tests.support.smoke import SMOKE
from tests.support.synthetic import write_images
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(ray_cluster):
    """The address of the server; MLFLOW_TRACKING_URI names it."""
    with (
        s3.server() as port,
        s3.environment(port),
        mlflow_server.server("s3://nvg-test/mlflow") as address,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv(tracking.ENVIRONMENT, address)
        yield address


@pytest.fixture(scope="module")
def config(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    images = write_images(folder / "images")
    return nvg.config.load(SMOKE, [f"output={folder}/runs", f"data.train={images}"])


def register(config, model):
    """A run that registers a sampler that ships."""
    run = tracking.start(config, f"register {model}")
    version = run.register("bags", ASSETS / model, read_metadata(str(ASSETS / model)), pyfunc.describe((32, 32, 1)))
    run.end()
    return version


@pytest.fixture(scope="module")
def registered(config):
    assert register(config, "fashion-mnist") == 1
    return "models:/bags@champion"


def test_a_training_writes_its_run_into_the_database_and_its_files_into_the_store(config, tmp_path):
    from nvg.training import jobs
    from nvg.training.loop import Place

    config.tokenizer_train.steps, config.tracking.log_every = 4, 2
    jobs.train_tokenizer(config, Place(), folder=str(tmp_path / "tokenizer"))
    run = tracking.start(config, "train_tokenizer", read_metadata(str(tmp_path / "tokenizer"))["run_id"])
    found = run.client.get_run(run.id)
    run.end()
    assert found.data.params["tokenizer_train.steps"] == "4"
    assert found.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert [point.step for point in run.client.get_metric_history(run.id, "loss")] == [2, 4]
    assert s3fs.S3FileSystem().glob(f"nvg-test/mlflow/*/{run.id}/artifacts/previews/00000004-reconstruction.png")


def test_mlflows_own_tools_load_a_registered_sampler(registered, tmp_path):
    import mlflow.models
    import mlflow.pyfunc

    expected = nvg.load("fashion-mnist").generate(["Bag", "Dress"], seed=[3, 4])
    rows = [{"label": "Bag", "seed": 3}, {"label": "3", "seed": 4}]
    model = mlflow.pyfunc.load_model(registered)
    assert np.array_equal(model.predict(rows), expected)
    with pytest.raises(ValueError, match="Bagg"):
        model.predict([{"label": "Bagg", "seed": 3}])
    (tmp_path / "rows.json").write_text(json.dumps({"dataframe_records": rows}))
    files = {"input_path": str(tmp_path / "rows.json"), "output_path": str(tmp_path / "answer.json")}
    mlflow.models.predict(registered, env_manager="local", **files)  # what `mlflow models predict` calls
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert np.array_equal(np.array(answer["predictions"], np.uint8), expected)


def test_a_served_model_follows_its_alias_without_a_restart(registered, config, deploy):
    address = deploy(model=registered, follow_seconds=0.5)

    def served():
        return httpx.get(f"{address}/v1/models/bags").json()["nvg"]["fingerprint"]

    def drawn():
        answer = httpx.post(f"{address}/v1/images/generations", json={"prompt": "Bag", "seed": 1}, timeout=60)
        answer.raise_for_status()
        return answer.json()["data"][0]

    first, image, processes = served(), drawn(), replicas()
    assert register(config, "fashion-mnist-fast") == 2
    second = until(lambda: served() != first and served(), "the new model")
    assert drawn() != image and replicas() == processes
    client = tracking._Client(tracking.tracking_uri(config))
    client.set_registered_model_alias("bags", "champion", 1)  # back again
    until(lambda: served() == first, "the old model")
    assert drawn() == image and second != first and replicas() == processes
    client.set_registered_model_alias("bags", "champion", 2)
