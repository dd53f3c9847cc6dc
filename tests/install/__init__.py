"""Does it install where nobody has ever installed it? Clean Debian userlands, and README.md followed to the letter (`make test-install`)."""
