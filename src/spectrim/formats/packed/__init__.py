"""Codes of few bits, packed: their scales and offsets, and their matrices."""
