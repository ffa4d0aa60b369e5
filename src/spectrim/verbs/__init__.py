"""What a user can ask for: shrink, search, evaluate, profile, inspect."""
