"""Migrations of the fleet manager's database; run by ``fleet.store.migrate``."""
