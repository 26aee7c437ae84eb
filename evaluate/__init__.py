"""Scores that agree with the official tools, on data sets in their published layouts."""
