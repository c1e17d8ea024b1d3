"""How much of a GPU a training uses: operations of the model per second, over the peak of the device's data sheet.

Model operations are those of the trained networks alone, three forward passes an image (one forward, two backward):
frozen networks, losses, and passes that gradient checkpointing repeats are not counted. This is the usual definition
(Chowdhery et al. 2022, PaLM, appendix B).
"""

from __future__ import annotations

import torch

# TFLOP/s in bfloat16, dense, of the manufacturer's data sheets; the first name that is part of the device's counts.
PEAKS = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 989,
    "B200": 2250,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
}


def peak_flops(device_name: str) -> float | None:
    """Operations a second in bfloat16 that a GPU has at most; None where nobody wrote it down."""
    return next((1e12 * peak for name, peak in PEAKS.items() if name in device_name), None)


def device_peak(device: torch.device) -> float | None:
    """`peak_flops` of a device; None for a CPU."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def speed(flops: float, peak: float | None) -> dict[str, float]:
    """What is logged of a worker that makes `flops` operations a second: TFLOP/s, and of the peak where it is known."""
    metrics = {"tflops_per_worker": flops / 1e12}
    return metrics if peak is None else metrics | {"model_flop_utilization": flops / peak}


def shown(metrics: dict[str, float]) -> str:
    """The same for the progress bar; nothing where it was not logged."""
    if "model_flop_utilization" in metrics:
        return f", {metrics['model_flop_utilization']:.0%} of the peak"
    if "tflops_per_worker" not in metrics:
        return ""
    tflops = metrics["tflops_per_worker"]
    return f", {tflops:.3g} TFLOP/s" if tflops >= 1 else f", {1e3 * tflops:.3g} GFLOP/s"
