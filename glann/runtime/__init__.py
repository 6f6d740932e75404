"""What every stage stands on: device, processes, files, randomness, signals, messages."""
