"""Whole numbers of few bits, packed: scales, zero points, and their matrices."""
