"""Public checkpoints: where they are, which layout they have, and how to read them."""
