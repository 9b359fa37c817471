"""What features are worth: kNN."""
