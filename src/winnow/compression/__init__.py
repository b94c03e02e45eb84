"""The main verb: a model in, a smaller one and the proof out."""
