"""Where prompts come from: read once, split into training and held-out, frozen in the run."""
