"""Running several trainings and putting what they measured side by side."""
