"""Figures and pictures of a tokenizer and of a sampler."""
