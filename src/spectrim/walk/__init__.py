"""The model block by block: sweeps, second moments, statistics of every site."""
