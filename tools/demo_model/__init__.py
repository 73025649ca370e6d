"""How the built-in demo model is made: corpus, tokenizer, network, training, export, evaluation."""
