"""What several experiments share: images in memory, tokens, held-out losses, and the judge of drawn pictures."""
