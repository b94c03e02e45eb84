"""What a terminal shows: progress with time left, and texts of other people's making as they are."""
