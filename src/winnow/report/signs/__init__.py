"""signs.html: the signs of weights in training, and what they are worth against magnitudes."""
