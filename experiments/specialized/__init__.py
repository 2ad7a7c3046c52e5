"""Joint detection on real images: recording and measuring."""
