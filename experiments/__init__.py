"""The paper's figures and the recipes behind what we ship, on the public API."""
