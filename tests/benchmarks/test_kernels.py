"""What `python -m benchmarks.kernels` counts, on functions whose launches can be said beforehand."""

import sys

import pytest
import torch

from benchmarks import kernels
from benchmarks.schedules import FORMS, build, configured


@pytest.mark.slow
def test_fused_loops_are_one_generated_kernel_and_a_matrix_product_is_one_of_the_library():
    backend = kernels.Kernels()
    compiled = torch.compile(lambda x, y: (x @ y).relu() * 2 + 1, backend=backend)
    x = torch.ones(8, 8)
    assert compiled(x, x).equal(torch.full((8, 8), 17.0))
    assert backend.launched == {"generated": 1, "library": 1}


def test_outside_counts_what_makes_numbers_and_nothing_of_a_compiled_function():
    outside, x = kernels.Outside(), torch.ones(4)
    inside = outside.inside(lambda value: (value + 1) * 2)
    with outside:
        y = x.view(2, 2) + 1  # a view makes none
        z = inside(y)
    assert z.equal(torch.full((2, 2), 6.0)) and outside.count == 1


@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_the_host_starts_at_most_600_kernels_and_graphs_for_a_picture_of_nine_stages(form):
    """Whatever the depth, which is inside of the graphs."""
    sizes = ("content.depth=2", "structure.depth=2", "tokenizer.widths=[32,32,32,32,32]")
    sampler = build(configured("d16", *sizes, form=form), "guided")
    state = sampler._start([0], 0, None, {})
    sampler._graphs = kernels.OnlyCopies(sampler.device)

    def draw():
        for stage in range(sampler.last_stage + 1):
            sampler._draw_stage(stage, state)
        sampler._decode(state.canvas)

    draw()  # records
    starts = kernels.counted(kernels.Outside(), draw) + len(sampler._graphs._recorded) + kernels.around(1, form)
    assert len(sampler._graphs._recorded) == 10  # of nine stages and the decoder
    assert 30 < starts <= 200, starts  # the bar of 600 with room, for a count that is a CPU's


@pytest.mark.parametrize("depths", [("6", "4"), ("3", "6"), ("4", "4")])
def test_depths_that_give_no_difference_are_one_line(depths, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kernels", "--depths", *depths])
    with pytest.raises(SystemExit):
        kernels.main()
    assert f"--depths {' '.join(depths)}: two even numbers" in capsys.readouterr().err
