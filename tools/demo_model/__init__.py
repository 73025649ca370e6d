"""The making of the demo model: corpus, tokenizer, network, training, export and evaluation."""
