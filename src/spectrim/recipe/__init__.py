"""What is asked: a recipe, checked before anything is loaded. No torch."""
