"""The real training loop around a task, without Ray, MLflow and checkpoints, for those that time its steps."""

from __future__ import annotations

from nvg.config import Config, TrainConfig, TrainingConfig
from nvg.training.loop import Loop, LoopSettings, Place, Start
from nvg.training.task import Task


def loop_of(
    task: Task,
    section: TrainingConfig,
    config: Config,
    steps: int,
    *,
    checkpoints: str = "",
    place: Place | None = None,
) -> Loop:
    """The loop of a training of `steps` steps, before its first one. section: of the configuration, its training's."""
    portions = LoopSettings(
        job="benchmark",
        total_steps=steps,
        batch_size=section.batch_size,
        slices=section.accumulate,
        micro_batch=section.micro_batch if isinstance(section, TrainConfig) else None,
        clip_norm=section.clip_norm,
        checkpoint_every=steps + 1,
        log_every=config.tracking.log_every,
        preview_every=0,
        evaluate_every=0,
        precision=section.precision,
        seed=config.seed,
        identity="benchmark",
    )
    return Loop(task, portions, config=config, checkpoints=checkpoints, place=place or Place(), start=Start())
