"""A remote teacher: called over HTTP, sometimes away, its late answers kept."""
