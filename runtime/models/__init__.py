"""The artifact that comes with the package: one folder each."""
