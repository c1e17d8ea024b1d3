"""Learning rates as functions of the step (docs/method.md, training). Steps count from 0."""

from __future__ import annotations

import math

BASE_BATCH = 256  # the batch size for which train.lr is given


def scaled_lr(lr: float, batch_size: int) -> float:
    """The linear scaling rule: lr at batch 256, times batch_size / 256."""
    return lr * batch_size / BASE_BATCH


def warmup_stable_decay(step: int, total: int, *, warmup: int, decay_share: float, final: float) -> float:
    """Factor of lr: linear from 0 over `warmup` steps, 1, then linear to `final` over the last `decay_share`.

    The last step, total - 1, has exactly `final`; step warmup - 1 has exactly 1.
    """
    decay = total * decay_share
    rise = (step + 1) / warmup if step < warmup else 1.0
    passed = (step + 1 - (total - decay)) / decay if decay > 0 else 0.0
    return rise * (1.0 - (1.0 - final) * min(max(passed, 0.0), 1.0))


def warmup_cosine(step: int, total: int, *, warmup: int) -> float:
    """Factor of lr: linear from 0 over `warmup` steps, then half a cosine from 1 to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * min((step - warmup) / max(total - warmup, 1), 1.0))
