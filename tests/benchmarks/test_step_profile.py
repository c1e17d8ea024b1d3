"""The step profile at toy size, on a stream without Ray: it runs, and its parts are the loop's."""

import pytest
import torch

from benchmarks import step_profile
from nvg.data.tokens import part_files, read_part, to_arrays
from nvg.training.checkpoint import list_checkpoints
from nvg.training.jobs import endless
from nvg.training.loop import Loop
from tests.support.toy_config import toy_config

pytestmark = pytest.mark.slow  # a profile of two rounds
STEPS, ROUNDS = 1, 2
CONFIG = {"data": {"unit_images": 16}, "train": {"batch_size": 8, "accumulate": 2}, "tracking": {"log_every": 1}}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A profile, and the loop that was profiled."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config, folder = toy_config(**CONFIG), tmp_path_factory.mktemp("profile")
    total = step_profile.steps_of(ROUNDS, STEPS)
    names = step_profile.write_tokens(config, f"{folder}/tokens", step_profile.rows_of(config, total))

    def epoch(number, skip):
        for (path,) in part_files(f"{folder}/tokens").values():
            arrays = {name: torch.from_numpy(values) for name, values in to_arrays(read_part(path)).items()}
            for half in (slice(0, 8), slice(8, 16)):
                yield {name: values[half] for name, values in arrays.items()}

    batches = endless(epoch, step_profile.rows_of(config, total) // 8)
    loop = step_profile.loop_of(config, batches, names, f"{folder}/checkpoints", total)
    yield step_profile.measure(loop, loop.task.batches(0), STEPS, ROUNDS), loop
    torch.set_num_threads(threads)


def test_every_part_is_a_method_of_the_loop_and_takes_time(measured):
    result, _ = measured
    assert all(callable(getattr(Loop, name)) for name in step_profile.PARTS.values())
    assert set(result.parts) == set(step_profile.PARTS) and min(result.parts.values()) > 0


def test_the_parts_are_nearly_the_whole_step(measured):
    result, _ = measured
    assert 0.7 * result.profiled < sum(result.parts.values()) <= result.profiled
    assert 0 < result.tensors < result.profiled


def test_the_loop_is_as_it_was_after_the_profile(measured):
    _, loop = measured
    assert not set(vars(loop)) & set(step_profile.PARTS.values())


def test_the_table_has_a_row_for_each_part_and_a_checkpoint_is_timed(measured):
    result, loop = measured
    table = step_profile.table(result)
    assert all(f"| {part} |" in table for part in step_profile.PARTS) and "| the rest |" in table
    stopped, written = step_profile.checkpoint_seconds(loop)
    assert 0 < stopped < written and len(list_checkpoints(loop.checkpoints)) == 1
