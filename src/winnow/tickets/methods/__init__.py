"""Methods that find lottery tickets, one a file, and their registry."""
