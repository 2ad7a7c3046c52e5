"""The server beside others that can run a cascade, and under load for long."""
