"""ticket.html: what a search for lottery tickets found."""
