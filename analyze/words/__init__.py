"""What a trace says, in words for a terminal, a mail and the page."""
