"""Scripts of a release: what is built, and whether it installs."""
