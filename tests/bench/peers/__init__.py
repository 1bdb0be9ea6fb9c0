"""What Thaw is compared with: the same work as people write it today."""
