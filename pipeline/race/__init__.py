"""Which embedding suits one's own images: candidates race within a time budget. Begin with story.py."""
