"""How it learns: the Transformer, objectives, batches, training, decoding. Knows torch and Lightning, nothing above."""
