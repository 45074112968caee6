"""Runs as a page that can be believed: numbers with intervals, cost, failures, pictures; one static HTML file."""
