"""What runs protocols. The one place that speaks to Redis."""
