"""medsynth turns folders of scans into other scans in one step of a generator."""

__version__ = "0.1.0"
