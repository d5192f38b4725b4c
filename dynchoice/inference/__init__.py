"""What is said about estimates."""
