"""Serving: one endpoint for two models. The only part of EBJR that knows asyncio."""
