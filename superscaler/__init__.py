"""superscaler."""
