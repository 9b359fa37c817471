"""Images in: sources, decoding, views, batches."""
