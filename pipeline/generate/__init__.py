"""What a model with a decoder can draw: reconstructions, interpolations, samples, anomalies."""
