"""A tiny stand-in for a checkout of FoundationVision/VAR: the names and signatures that benchmarks/device/var.py uses.

It does the rest of what matters there too: it prints while it builds, takes torch's layers their initialization for
good, and leaves the tokenizer's weights as the memory was.
"""

from __future__ import annotations

from pathlib import Path

FILES = {
    "dist.py": """
def get_device():
    return "cpu"
""",
    "models/__init__.py": """
from torch import nn

from .var import VAR, VQVAE


def build_vae_var(device, patch_nums=(1, 2, 4), V=16, Cvae=4, num_classes=8, depth=16):
    for layer in (nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.LayerNorm):
        setattr(layer, "reset_parameters", lambda self: None)
    tokenizer = VQVAE(V, Cvae).to(device)
    print("[constructor] depth", depth)
    return tokenizer, VAR(tokenizer, patch_nums, num_classes).to(device)
""",
    "models/var.py": """
import torch
import torch.nn.functional as F
from torch import nn

import dist


class VQVAE(nn.Module):
    def __init__(self, V, Cvae):
        super().__init__()
        self.vocab_size, self.Cvae = V, Cvae
        self.embedding = nn.Embedding(V, Cvae)
        self.decoder = nn.Conv2d(Cvae, 3, 3, padding=1)
        for parameter in self.parameters():
            parameter.data.fill_(float("nan"))

    def fhat_to_img(self, f_hat):
        picture = self.decoder(F.interpolate(f_hat, scale_factor=4))
        assert picture.isfinite().all()
        return picture.clamp_(-1, 1)


class VAR(nn.Module):
    def __init__(self, vae_local, patch_nums, num_classes):
        super().__init__()
        self.Cvae, self.V, self.num_classes = vae_local.Cvae, vae_local.vocab_size, num_classes
        self.patch_nums, self.first_l = patch_nums, patch_nums[0] ** 2
        self.L = sum(side**2 for side in patch_nums)
        self.vae_proxy = (vae_local,)
        self.rng = torch.Generator(device=dist.get_device())
        self.class_emb = nn.Embedding(num_classes + 1, 8)
        self.word_embed = nn.Linear(self.Cvae, 8)
        self.head = nn.Linear(8, self.V)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, label_B, x_BLCv_wo_first_l):
        start = self.class_emb(label_B)[:, None].expand(-1, self.first_l, -1)
        return self.head(torch.cat((start, self.word_embed(x_BLCv_wo_first_l)), dim=1)).float()

    @torch.no_grad()
    def autoregressive_infer_cfg(self, B, label_B, g_seed=None, cfg=1.5, top_k=0, top_p=0.0, more_smooth=False):
        assert label_B.shape == (B,) and not self.training
        x = torch.randn(B, self.L - self.first_l, self.Cvae)
        tokens = self(label_B, x)[:, -self.patch_nums[-1] ** 2 :].softmax(-1).flatten(0, 1).multinomial(1)
        canvas = self.vae_proxy[0].embedding(tokens).view(B, self.patch_nums[-1], self.patch_nums[-1], self.Cvae)
        return self.vae_proxy[0].fhat_to_img(canvas.permute(0, 3, 1, 2)).add_(1).mul_(0.5)
""",
}


def write_checkout(folder: Path) -> Path:
    """Write the stand-in into a folder, and return it."""
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content.lstrip())
    return folder
