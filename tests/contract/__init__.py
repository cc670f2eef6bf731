"""What users are promised, seen through the public API alone: the same tests on every deployment."""
