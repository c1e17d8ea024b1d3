"""Networks of others with their published weights, never trained here: LPIPS, DINO, DINOv2, Inception-v3."""
