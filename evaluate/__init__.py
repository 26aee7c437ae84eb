"""Evaluation on data sets in their published layouts, with scores that agree with the official tools."""
