"""What runs inside the servers that are compared, each in a process or virtual environment of its own."""
