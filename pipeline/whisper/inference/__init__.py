"""From sound to text: log-mel features, and tokens."""
