"""Model artifacts: loading, checking, and those bundled with the package."""
