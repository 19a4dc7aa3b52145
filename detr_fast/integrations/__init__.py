"""Drop-in replacements inside other people's models: `detr_fast.accelerate`, patches, named matchers."""
