"""The model in work: opened, its blocks changed, the output written."""
