"""The gallery: docs/gallery.md and its pictures."""
