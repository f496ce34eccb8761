"""What happens between a batch and a log line."""
