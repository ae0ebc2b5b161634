"""What the paper compares with: other ways from taps to a map."""
