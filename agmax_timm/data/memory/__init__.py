"""Images that stay decoded in memory, and buffers of batches that are reused."""
