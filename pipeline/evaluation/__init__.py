"""How good embeddings are: metrics, probes, and the records that keep them."""
