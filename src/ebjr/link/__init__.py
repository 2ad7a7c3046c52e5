"""A teacher that is far: asked over HTTP, sometimes away, its late answers kept."""
