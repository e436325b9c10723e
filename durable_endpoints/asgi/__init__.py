"""The surface that users mount."""
