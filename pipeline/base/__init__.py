"""What has no subject of its own: errors, files, randomness, the terminal, workers, the device."""
