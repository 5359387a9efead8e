"""Floor 5: reads the store and says what is there, and why. It changes nothing."""
