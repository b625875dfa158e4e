"""The embedded world: rendered scenes with ground truth, captions and prompts of them."""
