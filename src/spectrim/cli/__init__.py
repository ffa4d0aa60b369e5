"""How spectrim is asked: arguments, help, and what the terminal shows."""
