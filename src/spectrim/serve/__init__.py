"""A made model as a server that speaks OpenAI's API."""
