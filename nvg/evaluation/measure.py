"""The distributed part of an evaluation: one stream of work by Ray Data, one pool of actors that hold all networks.

Reading tasks decode images on CPUs; the actors, as many as cluster.encoders, do the rest. Results come back in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nvg.cluster import actors, blocks, device_of, set_threads
from nvg.config import Config
from nvg.console import progress
from nvg.data import ImageSource
from nvg.evaluation.features import NetworkFile
from nvg.evaluation.work import Networks, ReadUnit, Result, Work
from nvg.precision import set_precision


def measure(
    config: Config,
    work: Sequence[Work | ReadUnit],
    *,
    readers: Mapping[str, ImageSource],
    sampler_folder: str,
    network: NetworkFile,
    dinov2: NetworkFile | None = None,
    images: int,
    title: str = "evaluation",
) -> Iterator[Result]:
    """The results of all work, in order, with a progress bar over `images` images.

    readers: of the splits that the work names. title: of the bar.
    """
    import ray

    # Work and results travel as Python objects. Ray falls back to them anyway, and warns unless this asks for it.
    ray.data.DataContext.get_current().enable_fallback_to_arrow_object_ext_type = True
    cluster = config.cluster

    def read(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        work = row["work"]
        for some in work.read(readers, config) if isinstance(work, ReadUnit) else [work]:
            yield {"work": some}

    results = (
        blocks([{"work": some} for some in work])
        .flat_map(read, **cluster.reader)
        .map(
            Measure,  # type: ignore[arg-type]  # a class, for an actor
            fn_constructor_args=(config, sampler_folder, network, dinov2),
            compute=actors(cluster),
            **cluster.actor,
        )
    )
    results.context.execution_options.preserve_order = True
    results.context.enable_progress_bars = False
    bar = progress(images, title, "image")
    for row in results.iter_rows():
        bar.update(row["size"])
        yield row["result"]
    bar.close()


class Measure:
    """An actor: it holds the networks, and does the work that comes."""

    def __init__(
        self, config: Config, sampler_folder: str, network: NetworkFile, dinov2: NetworkFile | None = None
    ) -> None:
        from nvg.artifacts.models import load_sampler

        set_threads(config.cluster)
        device = device_of(config.cluster)
        dtype = set_precision(config.precision, device)
        lpips = None
        if config.tokenizer_train.lpips_weights is not None:
            from nvg.frozen.lpips import load_lpips

            lpips = load_lpips(config.tokenizer_train.lpips_weights).to(device)
        self.networks = Networks(
            load_sampler(sampler_folder, config.sampler).to(device, dtype=dtype),
            network.load(device),
            lpips,
            config.cluster.encode_batch,
            None if dinov2 is None else dinov2.load(device),
        )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        work: Work = row["work"]
        return {"result": work.do(self.networks), "size": work.size}
