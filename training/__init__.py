"""From a chat data set to a registered, fine-tuned Phi model."""
