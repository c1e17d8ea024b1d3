"""Tokenizer and sampler folders, their names and metadata; keys of artifacts; who may write them."""
