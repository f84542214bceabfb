"""What handlers inherit from."""
