"""Tasks, evaluations and their intervals; whatever is compared is what it is called."""
