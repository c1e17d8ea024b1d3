"""Training of the tokenizer as a `Task`: reconstruction, codebook upkeep, and the discriminator if asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from nvg.autoencoder import Autoencoder, AutoencoderOutput
from nvg.config import Config
from nvg.data.images import to_float, to_uint8
from nvg.training.ema import EMA
from nvg.training.loop import Batch, Task, draw_seed, workers
from nvg.training.parallel import Wrap, alone
from nvg.training.schedule import warmup_cosine
from nvg.training.tokenizer_loss import code_counts, seed_codebook, tokenizer_loss

CODEBOOK = "quantizer.codebook"
PREVIEW_IMAGES = 20


class CodeUsage(nn.Module):
    """How often each code was used since unused ones were last moved: a buffer, so that it is in checkpoints."""

    counts: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(codebook_size, dtype=torch.int64))


class TokenizerTask(Task):
    """Batches hold images, uint8 (b, H, W, C)."""

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
        self.usage = CodeUsage(config.tokenizer.codebook_size).to(device)
        self.modules = {"tokenizer": self.autoencoder, "usage": self.usage}
        self.averages = {"tokenizer": EMA(self.autoencoder, settings.ema_decay)}
        first, second = settings.betas
        self.optimizers = {
            "tokenizer": torch.optim.AdamW(
                self.autoencoder.parameters(),
                settings.lr,
                (first, second),
                weight_decay=settings.weight_decay,
                fused=True,
            )
        }
        self.clip = {"tokenizer": list(self.autoencoder.parameters())}
        self.lpips = self.discriminator = None
        if settings.lpips_weights is not None:
            from nvg.frozen.lpips import load_lpips

            self.lpips = load_lpips(settings.lpips_weights).to(device)
        if settings.discriminator_weights is not None:
            from nvg.training.discriminator import load_discriminator

            self.discriminator = load_discriminator(settings.discriminator_weights).to(device)
            heads = self.discriminator.heads
            self.modules["discriminator"] = heads
            self.optimizers["discriminator"] = torch.optim.AdamW(
                heads.parameters(), settings.discriminator_lr, (first, second), weight_decay=0.0, fused=True
            )
            self.clip["discriminator"] = list(heads.parameters())
        self.wrapped = wrap(self.autoencoder, "ddp")
        self.parallel = [self.wrapped]
        self._counts = torch.zeros_like(self.usage.counts)  # of this step on this worker
        self._output: AutoencoderOutput | None = None
        self._shown: Tensor | None = None  # images of the last batch

    def batches(self, step: int) -> Iterator[Batch]:
        return self.stream(step)

    def lr(self, step: int) -> dict[str, float]:
        factor = warmup_cosine(step, self.total_steps, warmup=self.settings.warmup_steps)
        rates = {"tokenizer": self.settings.lr, "discriminator": self.settings.discriminator_lr}
        return {name: rates[name] * factor for name in self.optimizers}

    def begin(self, batch: Batch, generator: torch.Generator) -> None:
        """The codebook begins at residuals of the first worker's first batch."""
        seed_codebook(self.autoencoder, to_float(batch["images"]), generator)
        self._share_codebook()
        self.averages["tokenizer"].reset()

    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        images = to_float(batch["images"])
        warm_up = step < self.warm_up_steps
        loss, terms, output = tokenizer_loss(self.wrapped, images, self.settings, warm_up=warm_up, lpips=self.lpips)
        self._counts += code_counts(output, self._counts.shape[0])
        self._output, self._shown = output, batch["images"]
        if self.discriminator is not None and step >= self.settings.discriminator_start * self.total_steps:
            adversarial, more = self._adversarial(images, output.reconstruction.float(), terms)
            loss, terms = loss + adversarial, terms | more
        return loss, terms

    def _adversarial(self, images: Tensor, fake: Tensor, terms: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The decoder's adversarial loss plus the discriminator's own, whose graphs do not touch.

        Both go into one backward pass: the heads are frozen while they judge for the decoder, and see reconstructions
        without gradient when they learn.
        """
        from nvg.training.discriminator import adaptive_weight, discriminator_loss, generator_loss

        assert self.discriminator is not None
        heads = self.discriminator.heads
        heads.requires_grad_(False)
        decoder = generator_loss(self.discriminator(fake))
        heads.requires_grad_(True)
        settings = self.settings
        reconstruction = settings.l1_weight * terms["l1"] + settings.l2_weight * terms["l2"]
        if "lpips" in terms:
            reconstruction = reconstruction + settings.lpips_weight * terms["lpips"]
        weight = adaptive_weight(reconstruction, decoder, self.autoencoder.decoder.last_layer.weight)
        own = discriminator_loss(self.discriminator(images), self.discriminator(fake.detach()))
        recorded = {"adversarial": decoder, "adversarial_weight": weight, "discriminator": own}
        return settings.discriminator_weight * weight * decoder + own, recorded

    def before_optimizers(self) -> None:
        """The heads are called bare, several times a step: their gradients are averaged over the workers here."""
        if self.discriminator is not None and workers() > 1:
            for parameter in self.discriminator.heads.parameters():
                if parameter.grad is not None:
                    distributed.all_reduce(parameter.grad)
                    parameter.grad /= workers()

    @torch.no_grad()
    def after_step(self, step: int, generator: torch.Generator) -> dict[str, float]:
        """Count the codes; from time to time put unused ones where residuals are."""
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
            self.autoencoder.quantizer.revive(unused, self._output.quantized.residual_means, generator)
            self._share_codebook()
            self.averages["tokenizer"].copy_rows(CODEBOOK, unused)
        return {"codes_used": 1.0 - float(unused.float().mean())}

    def _share_codebook(self) -> None:
        """Every worker takes the first one's codebook: each put codes onto residuals of its own images."""
        if workers() > 1:
            distributed.broadcast(self.autoencoder.quantizer.codebook.data, src=0)

    @torch.no_grad()
    def preview(self, averaged: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
        """reconstruction.png: some of the last batch's images, by the averaged weights."""
        if self._shown is None:
            return {}
        from nvg.pictures import reconstruction_picture

        images = self._shown[:PREVIEW_IMAGES]
        with self.averages["tokenizer"].applied():
            reconstructed = self.autoencoder.decode(self.autoencoder.encode(to_float(images)))
        return {"reconstruction.png": reconstruction_picture(images.cpu(), to_uint8(reconstructed).cpu())}
