"""What was found, drawn over images: boxes, masks, segments, and where queries looked."""
