"""How the owner trains a model, as a value, and the one run that trains it."""
