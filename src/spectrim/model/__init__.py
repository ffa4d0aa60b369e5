"""The model as it comes: sources, weights, sites, families, checkpoints."""
