"""What is measured and shown of a tokenizer and of a sampler."""
