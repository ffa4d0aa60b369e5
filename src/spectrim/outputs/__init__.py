"""Outputs: refused unless new, empty or ours; replaced whole, and only what we wrote."""
