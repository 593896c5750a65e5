"""What one trace says of itself."""
