"""The parts of an autoencoder, which combine freely: corruption → (encoder) → bottleneck → decoder → reconstruction."""
