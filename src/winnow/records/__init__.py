"""What the JSON files of a run, a bench and a search hold: schemas, and nothing of how they are drawn."""
