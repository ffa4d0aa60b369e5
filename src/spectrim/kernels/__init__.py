"""Products straight from packed codes, with inputs in eight bits: a C library and its way in."""
