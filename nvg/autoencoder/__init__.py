"""The tokenizer: a multi-granularity quantized autoencoder (docs/method.md, tokenizer). Imports torch alone."""

from nvg.autoencoder.autoencoder import Autoencoder, AutoencoderOutput
from nvg.autoencoder.quantizer import GranularityQuantizer, QuantizerOutput

__all__ = ["Autoencoder", "AutoencoderOutput", "GranularityQuantizer", "QuantizerOutput"]
