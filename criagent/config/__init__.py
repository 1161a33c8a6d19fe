"""The configuration: sections with their keys, reading, checks, and its texts."""
