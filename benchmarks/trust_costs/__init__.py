"""What trust costs: see ``__main__``."""
