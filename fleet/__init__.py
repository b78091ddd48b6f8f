"""What runs in the backend, and the command line of operators."""
