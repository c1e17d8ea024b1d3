"""What `python -m benchmarks.kernels` counts, on functions whose launches can be said beforehand."""

import sys

import pytest
import torch

from benchmarks import kernels


@pytest.mark.slow
def test_fused_loops_are_one_generated_kernel_and_a_matrix_product_is_one_of_the_library():
    backend = kernels.Kernels()
    compiled = torch.compile(lambda x, y: (x @ y).relu() * 2 + 1, backend=backend)
    x = torch.ones(8, 8)
    assert compiled(x, x).equal(torch.full((8, 8), 17.0))
    assert backend.launched == {"generated": 1, "library": 1, kernels.GRAPHS: 1}


def test_outside_counts_what_makes_numbers_and_of_a_compiled_function_its_results_alone():
    outside, x = kernels.Outside(), torch.ones(4)
    inside = outside.inside(lambda value: (value + 1) * 2)
    with outside:
        y = x.view(2, 2) + 1  # a view makes none
        z = inside(y)
    assert z.equal(torch.full((2, 2), 6.0)) and outside.count == 2


@pytest.mark.parametrize("depths", [("6", "4"), ("3", "6"), ("4", "4")])
def test_depths_that_give_no_difference_are_one_line(depths, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kernels", "--depths", *depths])
    with pytest.raises(SystemExit):
        kernels.main()
    assert f"--depths {' '.join(depths)}: two even numbers" in capsys.readouterr().err
