"""Annotation files examined and repaired: every image decoded, every text read, paths rewritten or found."""
