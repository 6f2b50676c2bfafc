"""The vectors that are searched: what they are made of, how they are chosen, and the same function for any image."""
