"""Where maps are cut: groups, curves, one allocation, the cut itself, and its trials."""
