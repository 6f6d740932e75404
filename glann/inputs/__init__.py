"""The inputs stage: noticing that pictures or weights have changed."""
