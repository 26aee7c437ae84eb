"""Ops of corrflow in every form they take, and the errors that every stage raises."""
