"""Drop-in replacements inside other people's models."""
