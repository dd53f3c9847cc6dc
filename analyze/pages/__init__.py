"""What page events and free blocks tell."""
