"""The page of a live session: its server, access and metrics."""
