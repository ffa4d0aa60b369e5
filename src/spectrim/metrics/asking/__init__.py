"""How a model is asked: prompts, answers kept on disk, data of the tasks."""
