"""What serving stands on: KV caches on virtual memory."""
