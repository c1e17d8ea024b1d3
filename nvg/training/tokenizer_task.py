"""The training of the tokenizer as a `Task`: reconstruction, codebook upkeep, and the discriminator if asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from nvg.autoencoder import Autoencoder, AutoencoderOutput
from nvg.config import Config
from nvg.data.images import to_float
from nvg.describe import forward_flops
from nvg.generator.batches import to_pixels
from nvg.training.ema import EMA
from nvg.training.parallel import Wrap, alone, workers
from nvg.training.schedule import warmup_cosine
from nvg.training.seeds import draw_seed
from nvg.training.task import Batch, Task
from nvg.training.tokenizer_loss import entry_counts, seed_codebook, tokenizer_loss

if TYPE_CHECKING:
    from nvg.training.discriminator import Discriminator

CODEBOOK = "quantizer.codebook"
PREVIEW_IMAGES = 20


class EntryUsage(nn.Module):
    """How often each entry of the codebook was used since unused ones were last moved.

    The counts are a buffer, so that checkpoints hold them.
    """

    counts: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(codebook_size, dtype=torch.int64))


class TokenizerTask(Task):
    """The tokenizer's training. Batches hold images, uint8 (b, H, W, C)."""

    def __init__(
        self,
        config: Config,
        stream: Callable[[int], Iterator[Batch]],
        total_steps: int,
        steps_per_epoch: int,
        *,
        device: torch.device,
        wrap: Wrap = alone,
    ) -> None:
        """wrap: data parallelism, applied to the module that is called."""
        self.config, self.total_steps, self.stream = config, total_steps, stream
        settings = self.settings = config.tokenizer_train
        self.warm_up_steps = settings.index_backprop_epochs * steps_per_epoch
        torch.manual_seed(draw_seed(config.seed, "tokenizer"))
        self.autoencoder = Autoencoder(config.tokenizer).to(device)
        self.usage = EntryUsage(config.tokenizer.codebook_size).to(device)
        self.modules = {"tokenizer": self.autoencoder, "usage": self.usage}
        self.averages = {"tokenizer": EMA(self.autoencoder, settings.ema_decay)}
        parameters = list(self.autoencoder.parameters())
        self.optimizers = {"tokenizer": self._adamw(parameters, settings.lr, settings.weight_decay)}
        self.clip = {"tokenizer": parameters}
        self.lpips: nn.Module | None = None
        self.discriminator: Discriminator | None = None
        if settings.lpips_weights is not None:
            from nvg.frozen.lpips import load_lpips

            self.lpips = load_lpips(settings.lpips_weights).to(device)
        if settings.discriminator_weights is not None:
            self._add_discriminator(settings.discriminator_weights, device)
        self.wrapped = wrap(self.autoencoder, "ddp")
        self.parallel = [self.wrapped]
        self._counts = torch.zeros_like(self.usage.counts)  # of this step on this worker
        self._output: AutoencoderOutput | None = None  # of the last batch
        self._images: Tensor | None = None  # of the last batch

    def _adamw(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
        first, second = self.settings.betas
        return torch.optim.AdamW(parameters, lr, (first, second), weight_decay=weight_decay, fused=True)

    def _add_discriminator(self, weights: str, device: torch.device) -> None:
        from nvg.training.discriminator import LogitAverages, load_discriminator

        discriminator = self.discriminator = load_discriminator(weights).to(device)
        heads = discriminator.heads
        self.logits = LogitAverages().to(device)
        self._logits = torch.zeros(3, device=device)  # of this step on this worker: sums of two means, slices
        parameters = list(heads.parameters())
        self.modules |= {"discriminator": heads, "logits": self.logits}
        settings = self.settings
        self.optimizers["discriminator"] = self._adamw(
            parameters, settings.discriminator_lr, settings.discriminator_weight_decay
        )
        self.clip["discriminator"] = parameters

    def batches(self, step: int) -> Iterator[Batch]:
        return self.stream(step)

    def lr(self, step: int) -> dict[str, float]:
        factor = warmup_cosine(step, self.total_steps, warmup=self.settings.warmup_steps)
        rates = {"tokenizer": self.settings.lr, "discriminator": self.settings.discriminator_lr}
        return {name: rates[name] * factor for name in self.optimizers}

    def begin(self, batch: Batch, rng: torch.Generator) -> None:
        """Put the codebook's entries onto residuals of the first worker's first batch."""
        seed_codebook(self.autoencoder, to_float(batch["images"]), rng)
        self._share_codebook()
        self.averages["tokenizer"].reset()

    def loss(self, batch: Batch, step: int, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        images = to_float(batch["images"])
        warm_up = step < self.warm_up_steps
        loss, terms, output = tokenizer_loss(self.wrapped, images, self.settings, warm_up=warm_up, lpips=self.lpips)
        self._counts += entry_counts(output, self._counts.shape[0])
        self._output, self._images = output, batch["images"]
        if self.discriminator is not None and step >= self.settings.discriminator_start * self.total_steps:
            adversarial, more = self._adversarial(images, output.reconstruction.float(), rng)
            loss, terms = loss + adversarial, terms | more
        return loss, terms

    def _adversarial(self, images: Tensor, fake: Tensor, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The decoder's adversarial loss plus the discriminator's own loss, whose graphs do not touch.

        Both go into one backward pass: the heads are frozen while they judge for the decoder, and see reconstructions
        without gradient when they learn.
        """
        from nvg.training.diffaug import augment
        from nvg.training.discriminator import discriminator_loss, generator_loss

        discriminator, settings = self.discriminator, self.settings
        assert discriminator is not None
        discriminator.heads.requires_grad_(False)
        decoder = generator_loss(discriminator(augment(fake, rng)))
        discriminator.heads.requires_grad_(True)
        real, judged = discriminator(augment(images, rng)), discriminator(augment(fake.detach(), rng))
        hinge, lecam = discriminator_loss(real, judged), self.logits.penalty(real, judged)
        self._logits += torch.stack([real.detach().mean(), judged.detach().mean(), self._logits.new_ones(())])
        loss = settings.discriminator_weight * decoder + hinge + settings.lecam_weight * lecam
        return loss, {"adversarial": decoder, "discriminator": hinge, "lecam": lecam}

    def before_optimizers(self) -> None:
        """Average the heads' gradients over the workers: the heads are called unwrapped, several times per step."""
        if self.discriminator is not None and workers() > 1:
            for parameter in self.discriminator.heads.parameters():
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= workers()

    @torch.no_grad()
    def after_step(self, step: int, rng: torch.Generator) -> dict[str, float]:
        """Count the entries used; every revive_every steps, put unused ones onto residuals. Average the logits."""
        self._average_logits()
        if workers() > 1:
            distributed.all_reduce(self._counts)
        self.usage.counts += self._counts
        self._counts.zero_()
        every = self.settings.revive_every
        if every == 0 or (step + 1) % every:
            return {}
        unused = self.usage.counts == 0
        self.usage.counts.zero_()
        if step < self.settings.revive_until * self.total_steps:
            assert self._output is not None
            self.autoencoder.quantizer.revive(unused, self._output.quantized.residual_means, rng)
            self._share_codebook()
            self.averages["tokenizer"].copy_rows(CODEBOOK, unused)
        return {"codes_used": 1.0 - float(unused.float().mean())}

    def _average_logits(self) -> None:
        """Take the mean logits of all workers' slices into their averages, in a step that has judged."""
        if self.discriminator is None:
            return
        if workers() > 1:
            distributed.all_reduce(self._logits)
        if self._logits[2] > 0:
            self.logits.update(self._logits[:2] / self._logits[2])
        self._logits.zero_()

    def _share_codebook(self) -> None:
        """Take the first worker's codebook on every worker: each put entries onto residuals of its own images."""
        if workers() > 1:
            distributed.broadcast(self.autoencoder.quantizer.codebook.data, src=0)

    def flops(self) -> float:
        """Those of the tokenizer alone, without the networks that judge it."""
        return 3.0 * sum(forward_flops(self.config, ("encoder", "decoder")).values())

    @torch.no_grad()
    def preview(self, averaged: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
        """Draw reconstruction.png: some of the last batch's images, by the averaged weights."""
        if self._images is None:
            return {}
        from nvg.pictures import reconstruction_picture

        images = self._images[:PREVIEW_IMAGES]
        with self.averages["tokenizer"].applied():
            reconstructed = self.autoencoder.decode(self.autoencoder.encode(to_float(images)))
        return {"reconstruction.png": reconstruction_picture(images.cpu(), to_pixels(reconstructed))}
