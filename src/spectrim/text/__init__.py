"""Text: documents, the default mix, token batches, splits that cannot overlap."""
