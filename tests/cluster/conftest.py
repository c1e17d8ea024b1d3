"""One Ray for all cluster tests: two CPUs, started once."""

import os

import pytest


@pytest.fixture(scope="session")
def ray_cluster():
    """A running local Ray with 2 CPUs and an object store of 500 MB."""
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray

    context = ray.init(
        address="local", num_cpus=2, object_store_memory=500 * 10**6, include_dashboard=False, log_to_driver=True,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    yield context
    ray.shutdown()
