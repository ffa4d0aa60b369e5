"""What people look at: terminal table, model card, HTML page. Reads output folders; no torch."""
