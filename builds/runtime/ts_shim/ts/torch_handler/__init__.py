"""What class-based handlers inherit from."""
