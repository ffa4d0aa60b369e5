"""Training what was cut and rounded: teacher, student, objective, steps."""
