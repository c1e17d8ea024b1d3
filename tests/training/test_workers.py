"""The loop on several workers, processes joined by gloo: who computes a slice does not matter."""

import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from torch.nn.parallel import DistributedDataParallel

from nvg.training.loop import Place, train
from tests.training.config import toy_config
from tests.training.test_loop import SilentBar
from tests.training.toy import ToyTask, toy_settings

SLICES = 4


def work(rank, world, folder):
    """A worker: trains, and saves the state and figures that it ends with."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    place = Place(rank=rank, world=world, bar=SilentBar)
    own = place.own(SLICES)
    task = ToyTask(wrap=DistributedDataParallel, mine=slice(own.start * 8 // SLICES, own.stop * 8 // SLICES))
    figures = train(task, toy_settings(slices=SLICES), toy_config(), f"{folder}/checkpoints", place=place)
    torch.save((task.state(), figures["loss"]), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one worker with all the slices ends with."""
    task = ToyTask()
    folder = tmp_path_factory.mktemp("alone")
    figures = train(task, toy_settings(slices=SLICES), toy_config(), str(folder), place=Place(bar=SilentBar))
    return task.state(), figures["loss"]


@pytest.mark.parametrize("world", [2, 3])  # equal shares, and one worker with two of four slices
def test_any_number_of_workers_trains_as_one(world, alone, tmp_path):
    multiprocessing.spawn(work, (world, str(tmp_path)), nprocs=world)
    for rank in range(world):
        state, loss = torch.load(tmp_path / f"{rank}.pt")
        assert loss == pytest.approx(alone[1], rel=1e-5) and state.keys() == alone[0].keys()
        for name, value in alone[0].items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6, msg=name)
