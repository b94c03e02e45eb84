"""Opening models: a folder, a Hugging Face name, a factory with weights, or a module in memory."""
