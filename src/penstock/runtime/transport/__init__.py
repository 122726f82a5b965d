"""Ways that tensors take between ranks: what the engine needs of them, over torch.distributed, and between threads."""
