"""Scans as files: reading, writing, geometry and tiling."""
