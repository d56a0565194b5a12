"""Objectives that several generators share."""
