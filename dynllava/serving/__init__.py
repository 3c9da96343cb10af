"""Methods of classes A and B served by a stock engine: images here, the language model there."""
